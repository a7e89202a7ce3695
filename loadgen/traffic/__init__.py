"""The traffic: arrivals, traces, prompts, lengths, mixtures."""
