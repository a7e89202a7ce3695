"""Decoder families as flat, fused torch code, and a loader that can stop at any layer."""
