"""Observability of a run: metric files, progress, throughput, memory use, profiler traces and the final summary."""
