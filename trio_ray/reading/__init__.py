"""What reading a cache is made of: rows part by part, keys, many ranges in few requests."""
