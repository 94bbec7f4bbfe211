"""Process groups, collectives and what DeepSpeed keeps per rank."""
