"""Storage: buckets as mounted folders or as objects, and calls that may hang. Imports no JAX."""
