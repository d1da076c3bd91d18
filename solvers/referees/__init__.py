"""Slower solvers that others are held against: exact, on the grid that the radio has."""
