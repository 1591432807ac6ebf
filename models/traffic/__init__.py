"""Simulated traffic: forecasts of single agents, and whole scenes continued by motion tokens."""
