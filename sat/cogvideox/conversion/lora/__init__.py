"""Converting, merging and extracting LoRA adapters."""
