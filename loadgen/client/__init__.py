"""Speaks to a server over HTTP, and knows when every byte came."""
