"""Platform tuning: what makes XLA:CPU fast, apart from the layers that authors read.

A function here computes what the plain formula in its docstring computes; only time and memory differ. It reads the
platform from the layout in force or takes it as an argument. Timings are of two CPU cores where nothing else is said.
"""
