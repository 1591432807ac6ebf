"""Configs: one file a run, plain data, no jax."""
