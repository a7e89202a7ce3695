"""Clients for a terminal. They know a server by HTTP or Redis only."""
