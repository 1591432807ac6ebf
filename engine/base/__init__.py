"""What every package uses: errors, exit codes, durations, files, text, and tables for the terminal. Imports no JAX."""
