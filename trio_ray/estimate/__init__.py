"""What a job will take, and when its cache is worth it, estimated from a sample of its corpus."""
