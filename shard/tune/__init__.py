"""Tunes and calibrates early exits: text, hidden states, heads, training. Knows no router."""
