"""Scheduling on one shard: which requests wait or run, and what the next step computes. Pure."""
