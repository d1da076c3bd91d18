"""Errors that a user sees; the command line prints them as one line and exits 2."""


class CoschedError(Exception):
    """Base. The message says what, where and the mend."""


class BadInput(CoschedError):
    """A file, message or argument handed in is wrong."""
