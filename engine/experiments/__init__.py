"""Looks at many runs: lists those below a folder, filters and sorts them, and computes intervals of their results.

Only `resampling.py`, which computes metrics, imports JAX.
"""
