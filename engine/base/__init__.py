"""What every package uses: errors, durations, files, text, and tables for the terminal. Imports no JAX."""
