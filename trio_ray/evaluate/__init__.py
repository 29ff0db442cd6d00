"""Question sets in, answers out: joined with a cache's prefixes, decoded in batches, scored, written as LLaVA does."""
