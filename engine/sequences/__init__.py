"""Ordered frames of drives: windows of them, and rows of a batch that continue a drive from step to step."""
