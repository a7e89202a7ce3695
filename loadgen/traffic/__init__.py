"""What is sent and when: arrivals, traces, prompts, lengths, mixtures."""
