"""Before serving: from a model's name to a complete folder."""
