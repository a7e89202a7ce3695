"""`helios score`: scores answers in a file at full depth."""
