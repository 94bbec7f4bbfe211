"""Fine-tuning of CogVideoX on SwissArmyTransformer and DeepSpeed. See docs/architecture.md for the walk of the data."""
