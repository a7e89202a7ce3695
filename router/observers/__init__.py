"""Observers of the router: metrics and telemetry."""
