"""Streams: data that is read in order, from a fixed number of virtual shards, without random access.

Batch n is a pure function of (seed, n), as for sources with random access. A checkpoint also stores where each shard
is opened again, which only saves reading: without it, the same batches are made from the beginning of the shards.
"""
