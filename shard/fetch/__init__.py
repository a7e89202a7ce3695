"""Fetches and converts models: from a name to a complete model folder."""
