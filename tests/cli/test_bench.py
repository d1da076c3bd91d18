"""`cosched bench`: what can be chosen of a suite, and what is refused before anything is run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cosched.bench import suites
from cosched.bench.model import Result, Scope


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("codesign", "--site", "metro"), "closed-loop, constant-batch, regret"),
        (("closed-loop", "--mix", "all"), "drawn, private"),
        (("closed-loop", "--load", "0"), "positive numbers"),
        (("closed-loop", "--site", "nowhere"), "nowhere"),
        (("constant-batch", "--mix", "private"), "no mixes"),
    ],
)
def test_what_there_is_not_is_one_line_and_exit_2(
    cosched: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], why: str
) -> None:
    code, out, err = cosched("bench", *arguments)
    assert (code, out) == (2, "")
    assert why in err
    assert "Traceback" not in err


def test_a_scope_reaches_the_suite_and_its_progress_stderr(
    cosched: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, Scope]] = []

    def suite(*, seeds: int, progress: Callable[[float], None], scope: Scope) -> Result:
        seen.append((seeds, scope))
        for k in range(101):
            progress(k / 100)
        return Result(rows=[], claims=[], sweeps=[])

    monkeypatch.setattr(suites, "get", lambda _name: suite)
    arguments = ("closed-loop", "--seeds", 2, "--site", "metro", "--load", 0.3, "--load", 2, "--mix", "private")
    code, _, err = cosched("bench", *arguments)
    assert code == 0
    assert seen == [(2, Scope(sites=("metro",), loads=(0.3, 2.0), mix="private"))]
    assert err.splitlines() == [f"closed-loop: {percent} %" for percent in range(5, 105, 5)]
