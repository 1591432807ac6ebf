"""Compiled programs: lowering, keys, caches, memory, FLOPs and HLO."""
