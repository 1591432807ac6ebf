"""Whole datasets: writes any source as ArrayRecord files, and checks every example of a source."""
