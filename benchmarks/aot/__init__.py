"""Compiles the train step for TPUs and GPUs that are absent, and measures the compiled programs."""
