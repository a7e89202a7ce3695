"""Load on one server: plans, pacing, runs."""
