"""The parts of export_original.py: the YAML in the original program's names (model_yaml), and the weights (convert)."""
