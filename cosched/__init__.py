"""cosched: joint scheduling of radio bandwidth and compute for edge sites."""

__version__ = "0.1.0"
