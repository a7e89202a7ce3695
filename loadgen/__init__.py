"""A load generator and its reports; knows the server only over HTTP."""
