"""Kinds of work: each turns an offer into its operating points."""
