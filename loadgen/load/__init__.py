"""Load on one server: plans, pacing, runs, and what was measured."""
