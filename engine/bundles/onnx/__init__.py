"""ONNX models of the entry points of a bundle, converted in another environment by jax2onnx."""
