// The page at /ops.
