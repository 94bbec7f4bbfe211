"""Weights for other programs and from them. A folder for each direction; the modules here are what these share."""
