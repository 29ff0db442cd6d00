"""Training a student with fewer layers from cached teacher prefixes (jobs/distill.py)."""
