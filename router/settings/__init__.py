"""What is read once, at the start: flags, environment, file and machine."""
