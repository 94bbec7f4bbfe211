"""How the demo family is made: clips, tokenizer, VAE, transformer, measurements (run by tools/make_demo.py)."""
