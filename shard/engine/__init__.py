"""Runs a step: sequences, KV cache, sampling, full depth."""
