"""Tokens from restored prefixes: the pool of keys and values, the attention over it, and the engine."""
