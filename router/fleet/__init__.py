"""Shards as the router manages them: processes, connections, swaps, restarts, load balancing."""
