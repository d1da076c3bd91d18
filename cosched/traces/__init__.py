"""Traces made of public data sets and of scenarios."""
