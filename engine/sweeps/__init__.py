"""Searches of settings with Optuna. Each trial is an ordinary run."""
