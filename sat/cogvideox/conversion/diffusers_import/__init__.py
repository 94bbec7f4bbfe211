"""The parts of convert_weight_hf2sat.py: where weights come from (source), what to make (plan), doing it (convert)."""
