"""The mesh, the rules from named dimensions to mesh axes, their checks and their report."""
