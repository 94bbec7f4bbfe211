"""The training loop, its DeepSpeed engine, schedules, checkpoints, evaluation and figures."""
