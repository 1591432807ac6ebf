"""The device mesh, the sharding rules from named dimensions to mesh axes, their checks, and the report of `explain`."""
