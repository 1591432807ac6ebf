"""Writes predictions in the formats of public benchmarks, one module for each format.

`convoy predict --format=NAME` imports the module `NAME` of this package, and makes its class `Format` (`format.py`).
"""
