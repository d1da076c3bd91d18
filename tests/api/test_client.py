"""Both Python clients on real sockets: every verb, refusals, silence, late answers, and following decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from control_peer import LEASE, REFUSED, STATUS, VIEW, Peer, peer, refuse

from cosched.api import messages as api
from cosched.api.async_client import AsyncClient
from cosched.api.client import Client, NoAnswer, Refused, default_endpoint, reachable, whatif_args
from cosched.errors import BadInput
from telemetry.messages import LlmSession

WORK = LlmSession(model="llama-3-8b", context_tokens=0, new_tokens=64, max_output_tokens=20, ttft_s=1.0, tpot_s=0.1)
MODE = api.ModeView(mode="DRAINING", since_s=0.0)
EXPLANATION = api.Explanation(task="t1", lease=LEASE, prices={"cell0/ul": 0.5}, planned={"cell0/ul": 1.0}, points=())
WHATIF = api.WhatifResult(kept=3, unpromised=("t9",), leases=(LEASE,), planned={}, prices={})
POLICY = api.PolicyView(policy="joint", chosen="joint", baseline="pf-admit", available=("joint", "pf-admit"))

# client method, its arguments -> verb, what the daemon must read, what it answers
CALLS: list[tuple[str, tuple[Any, ...], str, api.Args, Any]] = [
    ("status", (), "status", api.NoArgs(), STATUS),
    ("submit", ("t1", "ue7", WORK), "submit", api.SubmitArgs(task="t1", ue="ue7", work=WORK), LEASE),
    ("release", ("t1",), "release", api.TaskArgs(task="t1"), api.Released(task="t1", released=True)),
    ("list", ("t", 5), "list", api.ListArgs(prefix="t", limit=5), api.TaskList(total=1, tasks=(VIEW,))),
    ("show", ("t1",), "show", api.TaskArgs(task="t1"), VIEW),
    ("explain", ("t1",), "explain", api.TaskArgs(task="t1"), EXPLANATION),
    ("whatif", (whatif_args(more_prbs={"cell0": 3}),), "whatif", api.WhatifArgs(more_prbs={"cell0": 3}), WHATIF),
    ("policy", ("pf-admit",), "policy", api.PolicyArgs(policy="pf-admit"), POLICY),
    ("drain", (), "drain", api.NoArgs(), MODE),
    ("resume", (), "resume", api.NoArgs(), MODE),
    ("reload", (), "reload", api.NoArgs(), api.Reloaded(changed=("core.z",), generation=8)),
]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Peer]:
    with peer(tmp_path) as made:
        yield made


def test_every_verb_has_a_method_in_both_clients() -> None:
    assert {verb for _, _, verb, _, _ in CALLS} | {"watch"} == set(api.VERBS)
    for method, _, _, _, _ in CALLS:
        assert hasattr(Client, method)
        assert hasattr(AsyncClient, method)


def test_blocking_calls(daemon: Peer) -> None:
    with Client(daemon.endpoint) as client:
        for method, args, verb, read, answer in CALLS:
            daemon.handlers[verb] = lambda _, answer=answer: answer
            assert getattr(client, method)(*args) == answer
            assert daemon.seen[-1] == (verb, read)


def test_awaited_calls_run_side_by_side(daemon: Peer) -> None:
    daemon.handlers |= {verb: (lambda _, answer=answer: answer) for _, _, verb, _, answer in CALLS}
    daemon.handlers["submit"] = lambda args: msgspec.structs.replace(LEASE, task=args.task)  # type: ignore[attr-defined]

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            for method, args, _, _, answer in CALLS:
                assert await getattr(client, method)(*args) == answer
            found = await asyncio.gather(*(client.submit(f"t{i}", "ue7", WORK) for i in range(200)))
            assert [lease.task for lease in found] == [f"t{i}" for i in range(200)]

    asyncio.run(main())


def test_a_refusal_says_why_and_what_to_do(daemon: Peer) -> None:
    daemon.handlers["show"] = refuse("unknown_task", "no task 't9' lives", "'list' names those that do")
    with Client(daemon.endpoint) as client, pytest.raises(Refused, match="no task 't9' lives; 'list' names") as caught:
        client.show("t9")
    assert caught.value.code == "unknown_task"

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            with pytest.raises(Refused, match="no task 't9' lives"):
                await client.show("t9")

    asyncio.run(main())


def test_silence_is_an_error_and_a_late_answer_belongs_to_nobody(daemon: Peer) -> None:
    with Client(daemon.endpoint, timeout_s=0.2) as client:
        late = client.request("policy", api.PolicyArgs())[1]
        daemon.handlers["policy"] = lambda _: POLICY
        client.socket.send(late)  # a call that was given up: its answer is on its way
        daemon.handlers["status"] = lambda _: STATUS
        assert client.status() == STATUS
        daemon._stop.set()
        daemon._thread.join()
        with pytest.raises(NoAnswer, match=r"no answer to 'status' within 0\.2 s; is the daemon running\?"):
            client.status()

    Path(daemon.endpoint.removeprefix("ipc://")).touch()  # as a killed daemon leaves it

    async def main() -> None:
        async with AsyncClient(daemon.endpoint, timeout_s=0.1) as client:
            with pytest.raises(NoAnswer):
                await client.status()
            assert client._open == {}

    asyncio.run(main())


def test_no_daemon_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(NoAnswer, match=r"control\.sock: no daemon is there; 'cosched run' starts one"):
        Client(f"ipc://{tmp_path}/control.sock")


def test_the_users_own_daemon_comes_before_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, service = tmp_path / "own" / "control.sock", tmp_path / "service.sock"
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(own.parent))
    monkeypatch.setattr("cosched.api.client.SERVICE", f"ipc://{service}")
    assert default_endpoint() == f"ipc://{own}", "named in the error when there is neither"
    service.touch()
    assert default_endpoint() == f"ipc://{service}"
    own.parent.mkdir()
    own.touch()
    assert default_endpoint() == f"ipc://{own}"


def test_following_begins_with_the_present_decision(daemon: Peer) -> None:
    later = msgspec.structs.replace(LEASE, plan=9, reason="moved")
    daemon.current = {"t1": [LEASE, later], "t10": [REFUSED]}
    with Client(daemon.endpoint) as client:
        assert list(client.follow("t1", timeout_s=0.3)) == [LEASE, later], "t10 begins with t1, and is another task"
        assert len(list(client.follow(timeout_s=0.3))) == 3

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            seen = []
            async for lease in client.follow("t1"):
                seen.append(lease)
                if len(seen) == 2:
                    break
            assert seen == [LEASE, later]

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize(
    ("control", "offered", "chosen"),
    [
        ("ipc:///run/c", ("tcp://0.0.0.0:7", "ipc:///run/d"), "ipc:///run/d"),
        ("tcp://10.0.0.5:5552", ("ipc:///run/d", "tcp://0.0.0.0:5553"), "tcp://10.0.0.5:5553"),
        ("tcp://edge:5552", ("tcp://10.0.0.5:5553",), "tcp://10.0.0.5:5553"),
        ("tcp://[::1]:5552", ("tcp://[::]:5553",), "tcp://[::1]:5553"),
    ],
)
def test_the_decisions_are_looked_for_where_the_daemon_was_reached(
    control: str, offered: tuple[str, ...], chosen: str
) -> None:
    assert reachable(control, offered) == chosen


def test_decisions_that_cannot_be_reached_are_an_error() -> None:
    with pytest.raises(BadInput, match="publishes decisions at ipc:///run/d only"):
        reachable("tcp://10.0.0.5:5552", ("ipc:///run/d",))


def test_what_a_newer_daemon_adds_is_passed_over(daemon: Peer) -> None:
    daemon.handlers["policy"] = lambda _: msgspec.structs.asdict(POLICY) | {"since_s": 3}
    with Client(daemon.endpoint) as client:
        assert client.policy() == POLICY
