"""A shard without a model, for `--device sim`: times from a cost model, no torch."""
