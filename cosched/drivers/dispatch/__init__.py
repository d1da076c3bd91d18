"""Plans into force on a Ray cluster (docs/cluster.md). Only process.py, cluster.py and node_actor.py say `import ray`."""
