"""Prompts to videos: what to sample, sampling it on every process, and writing files."""
