"""Importers: one file per public data set."""
