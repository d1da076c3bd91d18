"""Errors of the solver package."""


class SolverError(Exception):
    """Base of all errors raised here."""


class BadProblem(SolverError):
    """The problem handed in is malformed; `where` names the place (a JSON path or array entry)."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


class UnknownSolver(SolverError):
    """No solver of that name is registered."""
