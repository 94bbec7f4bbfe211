"""The whole model: transformer, frozen VAE and text encoder, schedule and loss."""
