"""Drafts: tokens guessed from text, by a head, or by an exit, which one pass of the model verifies."""
