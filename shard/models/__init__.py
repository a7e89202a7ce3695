"""Decoder families as flat, fused torch code, and the loader that can stop at any layer."""
