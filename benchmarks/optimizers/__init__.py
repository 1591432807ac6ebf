import os

# The threads of OpenBLAS start with NumPy and SciPy, on all cores. They would disturb the chunk on the other core, and
# wait for each other on this one: a step of SOAP, which needs QR decompositions, took 1.8 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
