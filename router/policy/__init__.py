"""Decides what to serve next: reassessment as pure functions."""
