"""A synthetic server with known delays and faults, and a test of the load generator against it."""
