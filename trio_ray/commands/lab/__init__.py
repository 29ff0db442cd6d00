"""Studies and benchmarks: what pruning and compression cost, and how fast everything is."""
