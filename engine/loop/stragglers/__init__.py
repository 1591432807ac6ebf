"""Stragglers: which process slows down a run of several processes, and what it waits for."""
