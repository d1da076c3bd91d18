"""Commands, called as a shell calls them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cosched.cli.main import main


@pytest.fixture
def cosched(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command; (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        code = stopped.value.code
        return code if isinstance(code, int) else 0, out, err

    return call
