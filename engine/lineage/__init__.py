"""Joins records of lineage (`engine/run/lineage.py`) to trees, and answers which things saw a log.

It reads files only: the code of a run is not imported, and damaged records are named, not left out.
"""
