"""A prefix as bytes: codecs and the container they are stored in."""
