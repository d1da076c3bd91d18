"""Telemetry: typed messages, radio tables, data quality, traces, importers. Knows nothing of solvers."""
