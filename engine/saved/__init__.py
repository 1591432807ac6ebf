"""Existing runs: their checkpoints, their trained models, and predictions of these."""
