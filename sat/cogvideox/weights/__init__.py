"""Weight files: reading and writing SAT checkpoints, classifying names, translating to and from diffusers."""
