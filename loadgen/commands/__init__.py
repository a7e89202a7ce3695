"""`helios bench serve`, `compare` and `sweep`."""
