"""Captions to context: the frozen T5 encoder and the conditioner around it."""
