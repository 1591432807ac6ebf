"""Diagnosis of a run layer by layer, which `log.layers` turns on: norms, noise of the gradient, and activations.

The core does not import it. It has programs of its own, so the train step is the same with and without it.
"""
