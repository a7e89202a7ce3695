"""Tool calls: their formats, how prompts describe them, the grammar of answers, and the parser."""
