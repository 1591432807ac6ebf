"""Plans a run: hardware that may be absent, a cost model by formula, and the candidates among meshes and settings."""
