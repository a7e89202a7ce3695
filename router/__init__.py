"""Front of the house: HTTP, queueing, iteration-level batches, and the keepers of shards. No torch."""
