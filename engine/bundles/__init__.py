"""Bundles: a trained model as programs, weights, a manifest and samples in a folder, which runs without the engine."""
