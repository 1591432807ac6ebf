"""One run directory: its layout, its status, its log."""
