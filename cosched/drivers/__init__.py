"""Drivers: what feeds events to the core and carries out its commands."""
