"""Bases for the transform codec, fitted to a sample of a corpus."""
