"""Quantization of trained models: weights and activations in fewer bits, what each layer costs, training for it."""
