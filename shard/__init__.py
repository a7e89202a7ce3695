"""One process per device: weights, paged KV cache and early-exit decoding."""
