"""ONNX models of the entry points of a bundle, converted in another environment by jax2onnx."""

PYTHON_VARIABLE = "CONVOY_ONNX_PYTHON"
"""Environment variable that names the interpreter of an environment with jax2onnx and onnxruntime."""
