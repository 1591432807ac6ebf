"""Checkpoints: save policy, async saves, restore, integrity, retention, warm start, and export of weights."""
