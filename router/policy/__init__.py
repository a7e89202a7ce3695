"""What to serve next: the decisions of reassessment as pure functions."""
