"""Writes small simulated datasets in the exact layouts of public driving datasets."""
