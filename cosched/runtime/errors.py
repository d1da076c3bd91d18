"""What can go wrong while a split model runs. `code` is for programs, the message says what, where and the mend."""

from __future__ import annotations

from cosched.errors import BadInput, CoschedError


class BadModel(BadInput):
    """A configuration, checkpoint or layer range that cannot be run."""


class BadFrame(BadInput):
    """An activation, a KV layer or a message that is damaged or of other sizes than was agreed."""


class HostRefused(CoschedError):
    """A host did not do what it was asked for; nothing has changed there."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class HostLost(CoschedError):
    """A host has gone, or is silent for too long: what it held is taken to be gone as well."""


class CannotContinue(CoschedError):
    """A generation ends: its host has gone and this device does not hold all layers."""


class Interrupted(CoschedError):
    """A generation ends because nobody wants it any more."""
