"""Between a prompt and its tokens: tokenizers, chat templates, classes of prompts."""
