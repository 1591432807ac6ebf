import os

# The threads of OpenBLAS start with NumPy and SciPy, on all cores. They would disturb the chunk on the other core, and
# wait for each other on this one: a step of SOAP on the CNN took 45 instead of 19 ms of CPU time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
