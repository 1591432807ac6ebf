"""Failures during a run: preemption, hangs, divergence, silent corruption, restarts."""
