"""Seeing it: comparison tables and the HTML report."""
