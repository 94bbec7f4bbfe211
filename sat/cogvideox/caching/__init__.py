"""Stored latents and contexts: made once, found by what they were made of, and trained from."""
