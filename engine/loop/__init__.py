"""The loop of a training run: the trainer, what it does between two dispatches, and its evaluations and hooks."""
