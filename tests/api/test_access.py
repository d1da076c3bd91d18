"""Roles, scopes and limits without a socket; key files and their modes."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosched.api import keys
from cosched.api.access import DOMAINS, INCLUDES, Access, Identity, IdentityLimits
from cosched.api.messages import VERBS
from cosched.errors import BadInput
from telemetry.messages import (
    CellReport,
    LinkReport,
    Message,
    NodeReport,
    TaskProgress,
    TaskTruth,
    UeReport,
    UeReportBatch,
)

A, B, C = ("a" * 40, "b" * 40, "c" * 40)


def ue(name: str, cell: str = "cell0") -> UeReport:
    return UeReport(at_ns=0, source="s", seq=0, ue=name, cell=cell)


GNB = Identity(name="gnb", public=A, role="publisher", ues=("ue-*",), cells=("cell0",), tasks=("t1",))
SEES = Identity(name="eyes", public=B, role="viewer")
RUNS = Identity(name="hands", public=C, role="operator")
ASKS = Identity(name="phone", public="e" * 40, role="client", ues=("ue-7",), tasks=("ue-7/*",))


def test_a_key_is_let_in_by_role_and_socket() -> None:
    everybody = (GNB, SEES, RUNS, ASKS)
    access = Access(everybody)
    for domain, roles in DOMAINS.items():
        for identity in everybody:
            expected = (identity.name, "") if identity.role in roles else ("", "role may not use this socket")
            assert access.connect(identity.public, domain, 0.0) == expected
    assert access.connect("d" * 40, "control", 0.0) == ("", "unknown key")
    assert access.connect(RUNS.public, "", 0.0)[1] == "role may not use this socket"


def test_every_verb_has_a_role_that_somebody_can_hold() -> None:
    access = Access([GNB, SEES, RUNS, ASKS])
    for name, verb in VERBS.items():
        assert verb.role in INCLUDES, name
        assert access.call("hands", verb.role) == ""
        assert (access.call("eyes", verb.role) == "") == (verb.role == "viewer")
        assert access.call("gnb", verb.role) != ""
        assert (access.call("phone", verb.role) == "") == (verb.role != "operator")
        assert access.call("", verb.role) == "", "a plain connection is guarded by its file mode"
        assert access.call("gone", verb.role) == "not allowed any more"


def test_a_client_acts_and_speaks_for_its_own_tasks_and_ues_alone() -> None:
    access = Access([GNB, SEES, RUNS, ASKS])
    mine, other = ("task", "ue-7/1"), ("task", "ue-8/1")
    for _ in range(2):  # also when it is known
        assert access.act("phone", [mine, ("UE", "ue-7")]) == ""
        assert access.act("phone", [other]) == "may not act for this task"
        assert access.act("phone", [mine, ("UE", "ue-8")]) == "may not act for this UE"
        assert access.act("phone", [("task", "ue-7"), ("UE", "ue-7/1")]) == "may not act for this task"
    assert access.act("hands", [other]) == access.act("", [other]) == "", "operators and plain connections are free"
    done = TaskProgress(at_ns=0, source="s", seq=0, task="ue-7/1", done=3)
    assert access.publish("phone", done) == ""
    assert access.publish("phone", msgspec.structs.replace(done, task="ue-8/1")) == "may not speak for this task"
    assert access.publish("phone", ue("ue-7")) == "may not speak for this cell", "a UE's report needs its cell too"
    assert access.publish("hands", done) == "this key may not publish"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ue("ue-7"), ""),
        (ue("phone-7"), "may not speak for this UE"),
        (ue("ue-7", "cell1"), "may not speak for this cell"),
        (
            UeReportBatch(
                at_ns=0, source="s", seq=0, ue=("ue-1", "ue-2"), cell=("cell0",) * 2, ul_efficiency_bps_hz=()
            ),
            "",
        ),
        (
            UeReportBatch(at_ns=0, source="s", seq=0, ue=("ue-1", "x"), cell=("cell0",) * 2, ul_efficiency_bps_hz=()),
            "may not speak for this UE",
        ),
        (CellReport(at_ns=0, source="s", seq=0, cell="cell0"), ""),
        (CellReport(at_ns=0, source="s", seq=0, cell="cell1"), "may not speak for this cell"),
        (NodeReport(at_ns=0, source="s", seq=0, node="edge0"), "may not speak for this node"),
        (LinkReport(at_ns=0, source="s", seq=0, link="l", one_way_s=0.0), "may not speak for this link"),
        (TaskProgress(at_ns=0, source="s", seq=0, task="t1"), ""),
        (TaskProgress(at_ns=0, source="s", seq=0, task="t2"), "may not speak for this task"),
        (TaskTruth(at_ns=0, task="t1", output_tokens=1), "may not speak for this kind of message"),
    ],
)
def test_a_publisher_speaks_only_for_its_own(message: Message, reason: str) -> None:
    access = Access([GNB, SEES, RUNS])
    for _ in range(2):  # the second time it is remembered
        assert access.publish("gnb", message) == reason
    assert access.publish("", message) == ""
    assert access.publish("eyes", message) == access.publish("hands", message) == "this key may not publish"
    assert access.publish("gone", message) == "not allowed any more"


@given(names=st.lists(st.text(max_size=6), max_size=20))
def test_what_is_remembered_changes_no_answer(names: list[str]) -> None:
    remembers = Access([GNB])
    for name in names * 2:
        assert remembers.publish("gnb", ue(name)) == Access([GNB]).publish("gnb", ue(name))


def test_rate_is_a_burst_of_a_second_and_then_the_rate() -> None:
    limits = IdentityLimits(messages_per_s=10, bytes_per_message=100, connections_per_min=60)
    access = Access([msgspec.structs.replace(GNB, limits=limits), RUNS])
    assert [access.receive("gnb", 100, 0.0) for _ in range(11)] == [""] * 10 + ["too many messages"]
    assert [access.receive("gnb", 1, 0.1) for _ in range(2)] == ["", "too many messages"]
    assert access.receive("gnb", 101, 60.0) == "too large"
    assert [access.receive("gnb", 1, 60.0) for _ in range(11)].count("") == 10, "what was not used does not add up"
    assert access.receive("hands", 1, 0.1) == "", "another identity has its own"
    assert access.receive("", 10**9, 0.0) == ""
    assert access.receive("gone", 1, 0.0) == "not allowed any more"


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=300))
def test_no_identity_sends_more_than_rate_times_time_and_a_burst(gaps: list[float]) -> None:
    access, now_s, sent = Access([msgspec.structs.replace(GNB, limits=IdentityLimits(messages_per_s=20))]), 0.0, 0
    for gap in gaps:
        now_s += gap
        sent += access.receive("gnb", 1, now_s) == ""
        assert sent <= 20 + 20 * now_s + 1e-6


def test_connections_in_a_loop_are_held_off() -> None:
    access = Access([msgspec.structs.replace(RUNS, limits=IdentityLimits(connections_per_min=6))])
    answers = [access.connect(C, "control", 0.0)[1] for _ in range(7)]
    assert answers == [""] * 6 + ["too many connections"]
    assert access.connect(C, "control", 10.0) == ("hands", "")
    assert access.connect(C, "control", 10.0)[1] == "too many connections"


# ---- files

PAIR = keys.KeyPair(name="edge0", public="P" * 40, secret="S" * 40)


def test_a_secret_key_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = keys.write_pair(tmp_path / "keys", PAIR)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert keys.read_pair(path) == PAIR
    with pytest.raises(BadInput, match="there is a key of that name"):
        keys.write_pair(tmp_path / "keys", PAIR)
    path.chmod(0o640)
    with pytest.raises(BadInput, match="others can read this secret key: chmod 600"):
        keys.read_pair(path)


def test_a_key_from_systemd_may_have_the_mask_of_its_acl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keys.write_pair(tmp_path, PAIR)
    path.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.read_pair(path) == PAIR


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v = ", "not TOML"),
        ("v = 1", "missing required field `name`"),
        ('name = "x"\npublic = "short"\nsecret = "short"', "40 characters of Z85"),
        ('name = "x"\npublic = "p"\nsecret = "s"\nseecret = "s"', "unknown field `seecret`"),
    ],
)
def test_a_wrong_key_file_is_refused_without_quoting_it(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(BadInput, match=message) as caught:
        keys.read_pair(path)
    assert str(path) in str(caught.value)
    with pytest.raises(BadInput, match="No such file"):
        keys.read_pair(tmp_path / "y.key")


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "x" * 64, 'a"', "a\n", "ä"])
def test_a_name_that_is_no_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="1 to 63 letters"):
        keys.write_pair(tmp_path, msgspec.structs.replace(PAIR, name=name))


patterns = st.lists(st.text(max_size=8).filter(str.isprintable), max_size=3).map(tuple)
identities = st.builds(
    Identity,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    public=st.text("abc.-:+=^!/*?&<>()[]{}@%$#", min_size=40, max_size=40),
    role=st.sampled_from(["viewer", "publisher", "client", "operator"]),
    ues=patterns,
    nodes=patterns,
    limits=st.builds(IdentityLimits, messages_per_s=st.floats(1, 1e6), bytes_per_message=st.integers(1, 2**30)),
)


@given(entries=st.lists(identities, max_size=4, unique_by=(lambda i: i.name, lambda i: i.public)))
def test_the_list_is_read_as_it_was_written(entries: list[Identity], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("keys") / keys.ALLOWED
    for entry in entries:
        keys.allow(path, entry)
    assert keys.read_allowed(path) == tuple(entries)


def test_allowing_a_name_again_replaces_it_and_a_key_has_one_role(tmp_path: Path) -> None:
    path = tmp_path / keys.ALLOWED
    assert keys.read_allowed(path) == ()
    keys.allow(path, SEES)
    keys.allow(path, GNB)
    keys.allow(path, msgspec.structs.replace(SEES, role="operator"))
    assert [(i.name, i.role) for i in keys.read_allowed(path)] == [("gnb", "publisher"), ("eyes", "operator")]
    assert [p.name for p in tmp_path.iterdir()] == [keys.ALLOWED], "no half-written file is left"
    with pytest.raises(BadInput, match="no control characters"):
        keys.allow(path, msgspec.structs.replace(GNB, nodes=("a\x7f",)))
    with pytest.raises(BadInput, match="already allowed as 'eyes'; an identity has one role"):
        keys.allow(path, Identity(name="more", public=B, role="publisher"))
    path.write_text(path.read_text() + '\n[[allow]]\nname = "gnb"\npublic = "' + C + '"\nrole = "viewer"\n')
    with pytest.raises(BadInput, match="two entries have the same name"):
        keys.read_allowed(path)
