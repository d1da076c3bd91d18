"""The second stage: what admission leaves over, shared out by an objective."""
