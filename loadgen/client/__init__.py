"""The HTTP client, which timestamps every read."""
