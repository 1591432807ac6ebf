"""The processes of a run: cluster detection, the process group, exit status and shutdown."""
