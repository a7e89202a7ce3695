"""`helios bench engine`: the engine alone, without HTTP."""
