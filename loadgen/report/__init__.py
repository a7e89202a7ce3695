"""Reports of a run: tables, files, one HTML page."""
