"""Plans in whole steps of each resource, by prices over Pareto columns."""
