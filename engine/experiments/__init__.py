"""Looks at many runs: lists those below a folder, filters and sorts them, and computes intervals of their results.

Only modules that compute metrics import JAX: `resampling.py` and those that compare examples.
"""
