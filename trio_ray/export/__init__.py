"""Stored prefixes for other engines: files that they load, and a connector by which vLLM reads a cache itself."""
