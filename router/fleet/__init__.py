"""The keepers of shards: their processes, connections, swaps and lives, and who gets which request."""
