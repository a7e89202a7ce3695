"""Telemetry: windows, history and audit log, their store in Redis, and Prometheus metrics."""
