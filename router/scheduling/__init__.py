"""Pure: one shard's requests, who waits, who runs, what the next step is."""
