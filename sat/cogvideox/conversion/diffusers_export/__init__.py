"""The parts of convert_weight_sat2hf.py: what to convert (plan), doing it (convert), checking it (verify)."""
