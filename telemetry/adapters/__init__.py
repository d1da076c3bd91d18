"""Adapters: one file per live source."""
