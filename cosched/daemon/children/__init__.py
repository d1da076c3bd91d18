"""Programs that the daemon runs beside itself, each `python -m` one file."""
