"""Who is told what happens: metrics and telemetry."""
