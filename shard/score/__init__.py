"""`helios score`: answers in a file, read again at full depth."""
