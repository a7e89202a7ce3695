"""Servers as child processes of a benchmark, known by a command line and over HTTP alone."""
