"""One run directory: layout, lease, status, logs and ledgers."""
