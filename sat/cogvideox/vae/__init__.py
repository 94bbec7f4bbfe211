"""The 3D causal video autoencoder: pixels to latents and back."""
