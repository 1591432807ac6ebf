"""Benchmarks and correctness checks for an accelerator, in one command: `python -m benchmarks.accelerator`."""
