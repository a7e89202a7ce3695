"""What an answer may look like: a client's constraint, checked and made into a grammar."""
