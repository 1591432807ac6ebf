"""The command `convoy`."""
