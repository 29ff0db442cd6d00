"""The job: plan the shards, run the replicas on Ray, commit parts, report."""
