"""`helios bench helios`: the experiment of the HELIOS paper, on servers that it starts itself."""
