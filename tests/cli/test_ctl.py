"""`cosched ctl` as a user types it, against a peer on real sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from control_peer import LEASE, REFUSED, STATUS, VIEW, Peer, peer, refuse

from cosched.api import messages as api
from cosched.cli import main

MODULES = 300  # that a status loads, 220 today: what it costs is mostly these (`time cosched ctl status`)
WORK = {"kind": "llm", "model": "llama-3-8b", "context_tokens": 0, "new_tokens": 9, "max_output_tokens": 9} | {
    "ttft_s": 1.0,
    "tpot_s": 0.1,
}
ANSWERS: dict[str, object] = {
    "status": STATUS,
    "submit": LEASE,
    "release": api.Released(task="t1", released=True),
    "list": api.TaskList(total=2, tasks=(VIEW,)),
    "show": VIEW,
    "explain": api.Explanation(
        task="t2",
        lease=REFUSED,
        prices={"cell0/ul": 0.5},
        planned={"cell0/ul": 1.0},
        points=(api.PointView(point="k=4@edge0", value=1.0, cost=2.0, least_latency_s=(0.2, 0.05), needs={}),),
        counterfactuals=(api.Counterfactual(kind="more_prbs", amount=3, text="admitted with 3 more PRBs on cell0"),),
    ),
    "whatif": api.WhatifResult(kept=3, unpromised=("t9",), leases=(LEASE,), planned={"cell0/ul": 0.7}, prices={}),
    "policy": api.PolicyView(policy="pf-admit", chosen="joint", baseline="pf-admit", available=("joint",)),
    "drain": api.ModeView(mode="DRAINING", since_s=0.0),
    "resume": api.ModeView(mode="STEADY", since_s=0.0),
    "reload": api.Reloaded(changed=("core.z",), generation=8),
}
WORDS: dict[str, tuple[str, ...]] = {
    "submit": ("t1", "--ue", "ue7", "--work", json.dumps(WORK), "--weight", "2"),
    "release": ("t1",),
    "list": ("t", "--limit", "1"),
    "show": ("t1",),
    "explain": ("t2",),
    "whatif": ("--node-gone", "edge0", "--more-mhz", "cell0=20", "--more-prbs", "cell1=-3"),
    "policy": ("joint",),
}
SAID = {
    "status": ("STEADY", "ALARM disk full", "cell0/ul", "dl_cqi outside 0..15", "met 6 of 10, pf-admit 4"),
    "submit": ("t1: admitted k=4@edge0; cell0 10.0 PRBs, edge0 12.5 %; 400/90 ms", "Admitted."),
    "release": ("t1: released",),
    "list": ("k=4@edge0", "... and 1 more: see --limit"),
    "show": ("llm of ue7", "t1: admitted"),
    "explain": ("t2: rejected_no_capacity (cell0/ul)", "Rejected: full.", "cannot", "with 3 more PRBs on cell0"),
    "whatif": ("3 tasks keep their promise, 1 lose it", "t9", "t1: admitted"),
    "policy": ("pf-admit while DEGRADED, then joint (baseline pf-admit); there are: joint",),
    "drain": ("DRAINING",),
    "resume": ("STEADY",),
    "reload": ("changed: core.z",),
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Peer]:
    with peer(tmp_path) as made:
        made.handlers |= {verb: (lambda _, answer=answer: answer) for verb, answer in ANSWERS.items()}
        yield made


def run(capsys: pytest.CaptureFixture[str], endpoint: str, *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main.main(["ctl", "--endpoint", endpoint, *args])
    out, err = capsys.readouterr()
    return caught.value.code or 0, out, err  # type: ignore[return-value]  # our commands exit with numbers


@pytest.mark.parametrize("verb", ANSWERS)
def test_a_verb_for_people_and_for_programs(verb: str, daemon: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, daemon.endpoint, verb, *WORDS.get(verb, ()))
    assert (code, err) == (0, "")
    for words in SAID[verb]:
        assert words in out
    code, out, _ = run(capsys, daemon.endpoint, verb, *WORDS.get(verb, ()), "--json")
    assert code == 0
    assert json.loads(out) == json.loads(msgspec.json.encode(ANSWERS[verb]))


def test_every_verb_of_the_api_is_a_command() -> None:
    command = main.load("ctl")
    assert set(command.commands) == set(api.VERBS)


def test_what_is_typed_is_what_the_daemon_reads(
    daemon: Peer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "work.json"
    file.write_text(json.dumps(WORK))
    run(capsys, daemon.endpoint, "submit", "t1", "--ue", "ue7", "--work", str(file), "--fallback", "drop")
    verb, args = daemon.seen[-1]
    assert verb == "submit"
    assert json.loads(msgspec.json.encode(args)) == {
        "task": "t1",
        "ue": "ue7",
        "work": WORK,
        "fallback": "drop",
        "weight": 1.0,
    }
    run(capsys, daemon.endpoint, "whatif", *WORDS["whatif"], "--work", str(file), "--ue", "u", "--copies", "50")
    args = daemon.seen[-1][1]
    assert isinstance(args, api.WhatifArgs)
    assert (args.nodes_gone, args.more_hz, args.more_prbs) == (("edge0",), {"cell0": 20e6}, {"cell1": -3})
    assert (args.copies, [s.ue for s in args.submit]) == (50, ["u"])


def test_a_refused_task_exits_1(daemon: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.handlers["submit"] = lambda _: REFUSED
    assert run(capsys, daemon.endpoint, "submit", *WORDS["submit"])[0] == 1
    daemon.handlers["release"] = lambda _: api.Released(task="t1", released=False)
    code, out, _ = run(capsys, daemon.endpoint, "release", "t1")
    assert (code, out) == (1, "t1: no such task\n")


def test_watching_prints_a_line_for_each_decision(daemon: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.current = {"t1": [LEASE], "t2": [REFUSED]}
    code, out, _ = run(capsys, daemon.endpoint, "watch", "--count", "2")
    assert code == 0
    assert sorted(line.split(";")[0] for line in out.splitlines()) == [
        "t1: admitted k=4@edge0",
        "t2: rejected_no_capacity (cell0/ul)",
    ]
    code, out, _ = run(capsys, daemon.endpoint, "watch", "t2", "--quiet", "0.3", "--json")
    assert [json.loads(line)["task"] for line in out.splitlines()] == ["t2"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("submit", "t", "--ue", "u", "--work", "{}"), "--work: Object missing required field `kind`"),
        (("submit", "t", "--ue", "u", "--work", "{"), "--work: Input data was truncated"),
        (("submit", "t", "--ue", "u", "--work", "none.json"), "none.json: No such file or directory"),
        (("whatif", "--more-prbs", "cell0"), "--more-prbs cell0: give CELL=NUMBER"),
        (("whatif", "--more-prbs", "=3"), "--more-prbs =3: give CELL=NUMBER"),
        (("whatif", "--work", "{}"), "--work and --ue go together"),
        (("show", "t9"), "no task 't9' lives; 'list' names those that do"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    args: tuple[str, ...], message: str, daemon: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.handlers["show"] = refuse("unknown_task", "no task 't9' lives", "'list' names those that do")
    code, out, err = run(capsys, daemon.endpoint, *args)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_no_daemon_and_half_a_key_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, f"ipc://{tmp_path}/no.sock", "status")
    assert code == 2
    assert err == f"cosched: error: ipc://{tmp_path}/no.sock: no daemon is there; 'cosched run' starts one\n"
    code, _, err = run(capsys, "", "--key", "ann", "status")
    assert code == 2
    assert "go together (--key and --server)" in err


def test_status_imports_nothing_heavy(daemon: Peer) -> None:
    code = (
        "import sys; from cosched.cli import main\n"
        f"try: main.main(['ctl', '--endpoint', '{daemon.endpoint}', 'status'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stderr.split()
    assert not {"asyncio", "numba", "numpy", "ortools", "psutil", "pydantic", "rich", "structlog"} & set(loaded)
    assert len(loaded) < MODULES


def test_verbs_are_completed_by_the_shell() -> None:
    env = os.environ | {"_COSCHED_COMPLETE": "complete_bash", "COMP_WORDS": "cosched ctl re", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "cosched.cli.main"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.stdout.split() == ["release", "resume", "reload"]
