"""Converting, merging and extracting LoRA adapters, on the command line."""
