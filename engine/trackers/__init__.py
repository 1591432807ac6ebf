"""Passes what a run measures on to trackers of experiments: MLflow, W&B, Trackio, TensorBoard, CSV files."""
