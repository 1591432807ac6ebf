"""Examples of several lengths: padding, buckets of lengths, packing several examples into a row, and equal batches."""
