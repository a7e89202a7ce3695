"""Settings read once at the start: flags, environment, file and machine."""
