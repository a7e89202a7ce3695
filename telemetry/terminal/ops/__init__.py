"""`helios ops`: inspects a running server and gives it commands."""
