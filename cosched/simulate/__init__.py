"""Synthetic recorded telemetry: a 3GPP TR 38.901 channel, mobility, arrivals, and the scenario files that name them."""
