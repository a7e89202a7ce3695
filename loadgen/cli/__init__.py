"""Flags and units of the load generator."""
