"""From a step to tensors to tokens: sequences, KV cache, sampling, full depth."""
