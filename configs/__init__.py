"""Configs: one file per run. They contain plain data and do not import jax."""
