"""Backbones that can start from pretrained weights: each file is one family, with a table of its names elsewhere."""
