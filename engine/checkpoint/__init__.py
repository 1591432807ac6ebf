"""Checkpoints: when one is due, how it is written and restored, which ones stay, and export of the weights."""
