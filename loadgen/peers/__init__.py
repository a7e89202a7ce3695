"""`helios bench peers`: other servers and Helios on the same weights in turns, all started by it."""
