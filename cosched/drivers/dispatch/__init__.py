"""Plans into force on a Ray cluster (docs/cluster.md). Only dispatcher.py, cluster.py and node_actor.py import ray."""
