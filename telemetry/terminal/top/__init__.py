"""`helios top`: shows a deployment, live. It only reads."""
