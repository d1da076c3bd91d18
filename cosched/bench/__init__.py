"""Benchmarks that reproduce what the README states; `cosched bench SUITE`."""
