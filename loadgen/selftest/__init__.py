"""A synthetic server with known delays and faults, and the measure of this client against it."""
