"""Pedestrians of the recordings ETH/UCY, and forecasts of where they walk."""
