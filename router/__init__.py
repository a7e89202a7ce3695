"""Front of the house: HTTP, queueing, iteration-level batches, and the shards' keepers. Never imports torch."""
