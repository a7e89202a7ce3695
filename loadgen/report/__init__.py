"""Showing a run: live view, tables, files, one HTML page."""
