"""The router: HTTP, the request queue, iteration-level batching, and the shards' lifecycle. No torch."""
