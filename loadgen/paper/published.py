"""Figures of the HELIOS paper (arXiv 2504.10724, v1), against a static early-exit model unless noted.

The paper does not show batch gain and token gain together, nor tail latency.
"""

THROUGHPUT_GAIN = 1.48
RESPONSE_TIME_GAIN = 1.39
ENERGY_GAIN = 1.10
BATCH_GAIN = 3.7
MEMORY_SAVED = 0.674  # at most
FIRST_EXIT_SHARE = 0.91  # of tokens; 0.73 for the early-exit model alone
PERPLEXITY_RISE = 0.01
SWAPS, REQUESTS = 6, 1087

# Where tokens of OPT-1.3B leave (section 3): three quarters by a fourth of the layers, few need all of them.
EASY_SHARES = {0.25: 0.74, 0.5: 0.12, 0.75: 0.07}  # by share of the layers; the rest at full depth
# Prompts of another kind, for a shift: more than half of the tokens need more than a fourth. Not the paper's.
HARD_SHARES = {0.25: 0.35, 0.5: 0.45, 0.75: 0.1}
