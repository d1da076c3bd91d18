"""What can be wrong with telemetry that is handed in: whose fault, what, where, and the mend, in one line."""


class TelemetryError(Exception):
    """Base of all errors of this package."""


class BadMessage(TelemetryError):
    """A message that breaks its schema or its units."""


class BadTable(TelemetryError):
    """An index outside a 3GPP table, or a table that does not exist."""


class BadFile(TelemetryError):
    """A recording that cannot be read: missing, empty, wrong columns, not in the format it is said to be."""


class BadTrace(TelemetryError):
    """A trace that cannot be read or written: not MCAP, empty, or times that MCAP cannot hold."""


class UnknownSource(TelemetryError):
    """No importer of that name."""


class BadEndpoint(TelemetryError):
    """A socket that cannot be opened: malformed, taken, or plain tcp beyond this machine."""
