"""The input pipeline: sources of examples, shuffling, mixtures, packing, batches, and transfer to the devices.

Global batch n is a pure function of (seed, n), on any number of processes. A checkpoint therefore stores no iterator
state, only the number of the next batch.
"""
