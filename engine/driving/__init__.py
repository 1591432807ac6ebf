"""Metrics of detection and of forecasting."""
