"""Prompts and tokens: tokenizers, chat templates, classes of prompts."""
