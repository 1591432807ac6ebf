"""Platform tuning, kept apart from the layers that authors read. Most of it makes XLA:CPU fast.

Each function computes the plain formula in its docstring; only time and memory differ. It takes the platform from the
active layout or as an argument. Timings are from two CPU cores unless stated otherwise.
"""
