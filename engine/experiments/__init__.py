"""Looks at many runs: lists those below a folder, and filters and sorts them. Imports no JAX."""
