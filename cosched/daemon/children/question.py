"""The process that answers what-if and why: beside the daemon, so that no question holds anything else up.

Started by cosched/daemon/inquiry.py as `python -m cosched.daemon.children.question`, niced, and killed when an answer
takes too long. It ends when its stdin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from typing import Any, Final

import msgspec
import numpy as np

from cosched.api import messages as api
from cosched.children.framing import read_framed, write_framed
from cosched.children.packing import pack, solve_packed
from cosched.children.pool import SolveLost, ask_of
from cosched.children.solve import READY
from cosched.config import wiring as build
from cosched.core.commands import Solve
from cosched.core.settings import Settings
from cosched.core.snapshot import Snapshot
from cosched.daemon import questions
from cosched.errors import CoschedError
from solvers.errors import SolverError
from solvers.solution import Solution
from telemetry.messages import TaskOffer

NICE: Final = 5


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is to be explained. planned (R,): use of each resource as the plan in force counts it."""

    offer: TaskOffer
    lease: api.Lease
    planned: tuple[float, ...]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and the state that it is asked of; one of `whatif` and `why` is set."""

    site_toml: str
    ue_devices: dict[str, str]
    policy: str
    core: Settings
    snapshot: Snapshot
    whatif: api.WhatifArgs | None = None
    offers: tuple[TaskOffer, ...] = ()  # further tasks of a what-if
    why: Why | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: a result (an encoded WhatifResult or Explanation), or a fault."""

    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    fault: api.Fault | None = None


@functools.lru_cache(maxsize=2)
def _plant(site_toml: str, ue_devices: tuple[tuple[str, str], ...]) -> build.Plant:
    return build.plant(site_toml, "the daemon's site", dict(ue_devices))


async def _ask(command: Solve) -> Solution:
    answer = solve_packed(pack(ask_of(command)))
    if answer.solution is None:
        raise SolveLost(answer.error)
    return answer.solution


def _result(question: Question) -> Any:  # noqa: ANN401  # of the verb's result type
    plant = _plant(question.site_toml, tuple(sorted(question.ue_devices.items())))
    scene = questions.Scene(plant, question.policy, question.core, question.snapshot, _ask)
    if question.whatif is not None:
        return asyncio.run(questions.whatif(scene, question.whatif, question.offers))
    assert question.why is not None  # noqa: S101  # one of the two is set
    why = question.why
    return asyncio.run(questions.explain(scene, why.offer, why.lease, np.array(why.planned)))


def answer(data: bytes) -> bytes:
    """Answer an encoded Question with an encoded Reply, and a packed Ask (of a rehearsal) as any worker does."""
    try:
        question = msgspec.msgpack.decode(data, type=Question)
    except msgspec.ValidationError:
        return pack(solve_packed(data))
    try:
        reply = Reply(result=msgspec.Raw(msgspec.msgpack.encode(_result(question))))
    except (CoschedError, SolverError) as error:
        reply = Reply(fault=api.Fault(code="not_done", message=str(error)))
    return msgspec.msgpack.encode(reply)


def main() -> None:
    """Say that this process is there, and answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between two answers
    with contextlib.suppress(BrokenPipeError):
        write_framed(out, READY)
        with contextlib.suppress(PermissionError):  # systemd's filter may not let it
            os.nice(NICE)  # from here on: nobody is to wait for the start
        while (data := read_framed(sys.stdin.buffer)) is not None:
            write_framed(out, answer(data))  # a defect ends this process: the asker is told, the daemon goes on


if __name__ == "__main__":
    main()
