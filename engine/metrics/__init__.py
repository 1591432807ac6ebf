"""Metrics with mergeable states."""
