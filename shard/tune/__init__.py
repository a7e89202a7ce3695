"""Making early-exit models: text, hidden states, heads, training. Knows no router."""
