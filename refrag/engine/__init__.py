"""The torch engine's inside: prompts → tokens, for many requests at once."""
