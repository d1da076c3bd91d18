"""Decisions put into force on a Ray cluster: one process beside the daemon, an actor on each node."""
