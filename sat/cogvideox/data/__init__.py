"""Videos and captions in, batches of uint8 frames out. Start at dataset.build_dataset and
loader.build_loader.
"""
