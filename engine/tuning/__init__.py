"""Suggests a learning rate and a batch size, each from a short measurement with its curve."""
