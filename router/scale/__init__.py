"""The router, its policy and its loop before simulated shards in one process, in virtual time."""
