"""What the records of a run say: pure functions from records to figures."""
