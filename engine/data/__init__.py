"""Sources of examples, their order, the batches made of them and their way to the devices.

A batch is addressed by its number: global batch n is a pure function of (seed, n), on any number of processes. There
is therefore no iterator state to save; the position of a run is the number of its next batch.
"""
