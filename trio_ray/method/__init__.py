"""TRIO token selection on packed rows. Tensors in, tensors out; imports torch alone."""
