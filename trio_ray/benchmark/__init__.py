"""The benchmark: unpruned, the authors' selection, random and ours side by side, on whatever device there is."""
