"""Errors that a user sees, printed by the command line as one line before it exits 2; and one that nobody may."""


class CoschedError(Exception):
    """Base. The message says what, where and the mend."""


class BadInput(CoschedError):
    """A file, message or argument handed in is wrong."""


class Broken(BaseException):
    """An invariant of ours does not hold: state that `validate` looks at. No handler of a daemon's may catch it."""


def hold(condition: object, *what: object) -> None:
    """Raise Broken with a sentence unless it holds. The sentence is made only then: this runs after every event."""
    if not condition:
        raise Broken(" ".join(map(str, what)))
