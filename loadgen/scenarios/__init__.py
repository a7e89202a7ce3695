"""Named runs, each with a promise that it checks."""
