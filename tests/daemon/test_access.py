"""A real daemon with keys: roles over tcp, a client in JavaScript over ipc, metrics over HTTP. The tests share one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from checkout import HELPERS
from daemon_cases import PATIENCE_S, SESSION, Daemon, Place, until

from cosched.api import keys
from cosched.api.access import Identity, IdentityLimits
from cosched.api.client import Client, NoAnswer, Refused, curve
from cosched.api.messages import NoArgs, Watching
from cosched.api.zap import new_pair
from telemetry.bus import Curve, Follower, Publisher
from telemetry.messages import NodeReport, TaskProgress, UeReport
from telemetry.wire import encode

NAMES = ("daemon", "gnb", "eyes", "hands", "phone", "stranger")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Site:
    """A daemon with keys, and where it is."""

    daemon: Daemon
    folder: Path
    server: str
    control: str
    telemetry: str
    metrics: int

    def keys_of(self, name: str) -> Curve | None:
        return curve(str(self.folder / f"{name}.key"), self.server)

    def client(self, name: str, timeout_s: float = 30.0) -> Client:
        return Client(self.control, self.keys_of(name), timeout_s)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("access")
    pairs = {name: new_pair(name) for name in NAMES}
    for pair in pairs.values():
        keys.write_pair(base / "keys", pair)
    for identity in (
        Identity(name="gnb", public=pairs["gnb"].public, role="publisher", ues=("ue*",), cells=("cell0",)),
        Identity(name="eyes", public=pairs["eyes"].public, role="viewer"),
        Identity(name="phone", public=pairs["phone"].public, role="client", ues=("ue1",), tasks=("mine*",)),
        Identity(
            name="hands", public=pairs["hands"].public, role="operator", limits=IdentityLimits(bytes_per_message=2000)
        ),
    ):
        keys.allow(base / "keys" / keys.ALLOWED, identity)
    control, telemetry, metrics = free_port(), free_port(), free_port()
    settings = {
        "SECURITY_KEYS": str(base / "keys"),
        "CONTROL_BIND": f'["ipc://{base}/run/control.sock", "tcp://127.0.0.1:{control}"]',
        "CONTROL_DECISIONS": f'["ipc://{base}/run/decisions.sock", "tcp://127.0.0.1:*"]',
        "TELEMETRY_BIND": f'["tcp://127.0.0.1:{telemetry}"]',
        "TELEMETRY_STALE_INPUT_S": "1000",
        "METRICS_LISTEN": f"127.0.0.1:{metrics}",
    }
    with Place(base, settings).daemon() as daemon:
        daemon.ready().close()
        tcp = "tcp://127.0.0.1:"
        yield Site(daemon, base / "keys", pairs["daemon"].public, f"{tcp}{control}", f"{tcp}{telemetry}", metrics)


@pytest.fixture(scope="module")
def heard(site: Site) -> Iterator[Publisher]:
    """A gNB under its key, of whose UEs the daemon has heard."""
    publisher = Publisher(site.telemetry, site.keys_of("gnb"))
    seq = iter(range(10**6))

    def said() -> bool:
        for ue in ("ue0", "ue1"):
            report = UeReport(at_ns=1, source="gnb", seq=next(seq), ue=ue, cell="cell0", ul_efficiency_bps_hz=3.0)
            publisher.send(*encode(report))
        with site.client("eyes") as client:
            return client.status().ingest.reports >= 2

    until(said)
    yield publisher
    publisher.close()


@pytest.mark.usefixtures("heard")
def test_an_operator_submits_a_viewer_looks_and_others_get_nothing(site: Site) -> None:
    with site.client("hands") as hands, site.client("eyes") as eyes:
        assert hands.submit("t1", "ue0", SESSION).point
        assert eyes.show("t1").ue == "ue0"
        assert next(eyes.follow("t1")).task == "t1"
        for role, forbidden in (
            ("client", lambda: eyes.release("t1")),
            ("operator", eyes.drain),
            ("client", lambda: eyes.submit("t2", "ue0", SESSION)),
        ):
            with pytest.raises(Refused, match=f"needs the role {role}, this key has viewer") as caught:
                forbidden()
            assert caught.value.code == "not_allowed"
        assert hands.release("t1").released
    for name in ("stranger", "gnb"):
        with site.client(name, timeout_s=0.5) as client, pytest.raises(NoAnswer, match="is this key not allowed"):
            client.status()
    with site.client("eyes") as eyes:
        refused = {c.reason for c in eyes.status().ingest.refused if c.source == "(handshake)"}
    assert refused == {"unknown key", "role may not use this socket"}


@pytest.mark.usefixtures("heard")
def test_a_client_runs_its_own_tasks_and_reports_on_them_with_one_key(site: Site) -> None:
    with site.client("phone") as phone, site.client("hands") as hands:
        assert hands.submit("theirs", "ue0", SESSION).point
        assert phone.submit("mine1", "ue1", SESSION).point
        for what, forbidden in (
            ("task", lambda: phone.submit("theirs", "ue1", SESSION)),
            ("UE", lambda: phone.submit("mine2", "ue0", SESSION)),
            ("task", lambda: phone.release("theirs")),
        ):
            with pytest.raises(Refused, match=f"may not act for this {what}") as caught:
                forbidden()
            assert caught.value.code == "not_allowed"
        with pytest.raises(Refused, match="needs the role operator, this key has client"):
            phone.drain()
        publisher = Publisher(site.telemetry, site.keys_of("phone"))
        seq = iter(range(10**6))

        def reported() -> bool:
            publisher.send(*encode(TaskProgress(at_ns=1, source="phone", seq=next(seq), task="mine1", done=3)))
            publisher.send(*encode(TaskProgress(at_ns=1, source="phone", seq=next(seq), task="theirs", done=9)))
            refused = {(c.source, c.reason) for c in hands.status().ingest.refused}
            return phone.show("mine1").reported and ("phone", "may not speak for this task") in refused

        until(reported)
        publisher.close()
        assert not hands.show("theirs").reported
        for look in (phone.show, phone.explain):
            with pytest.raises(Refused, match="may not act for this task"):
                look("theirs")
        assert {view.task for view in phone.list().tasks} == {"mine1"}
        assert phone.list().total == 1, "not even how many others there are"
        assert {view.task for view in hands.list().tasks} >= {"mine1", "theirs"}
        assert phone.release("mine1").released
        assert hands.release("theirs").released


def test_what_a_publisher_may_not_say_is_counted_under_its_name(site: Site, heard: Publisher) -> None:
    heard.send(*encode(UeReport(at_ns=1, source="gnb", seq=1, ue="ue0", cell="cell1", ul_efficiency_bps_hz=3.0)))
    heard.send(*encode(NodeReport(at_ns=1, source="gnb", seq=2, node="edge0", up=False)))

    def counted() -> bool:
        with site.client("eyes") as client:
            refused = {(c.source, c.reason) for c in client.status().ingest.refused}
        return {("gnb", "may not speak for this cell"), ("gnb", "may not speak for this node")} <= refused

    until(counted)


def test_a_request_beyond_its_limit_is_not_answered(site: Site) -> None:
    with site.client("hands", timeout_s=0.5) as hands, pytest.raises(NoAnswer):
        hands.show("t" * 3000)


def test_a_key_is_revoked_by_a_reload(site: Site) -> None:
    path = site.folder / keys.ALLOWED
    before = keys.read_allowed(path)
    with site.client("eyes") as eyes, site.client("eyes", timeout_s=1.0) as closed, site.client("hands") as hands:
        assert eyes.status().pid == site.daemon.process.pid
        keys.write_allowed(path, [identity for identity in before if identity.name != "eyes"])
        hands.reload()
        with pytest.raises((NoAnswer, Refused)):
            closed.status()
        keys.write_allowed(path, before)
        hands.reload()
        assert eyes.status().pid == site.daemon.process.pid


def test_whoever_is_revoked_hears_no_decision_any_more_and_the_others_go_on(site: Site, heard: Publisher) -> None:
    """Over CURVE: open connections of the key are cut; who stays comes again by himself."""
    path = site.folder / keys.ALLOWED
    before = keys.read_allowed(path)
    with site.client("hands") as hands, site.client("eyes") as eyes:
        watching: Watching = hands.call("watch", NoArgs())
        endpoint = next(e for e in watching.endpoints if e.startswith("tcp://"))
        eyes.status()
        revoked, stays = (Follower(endpoint, [b"status"], site.keys_of(name)) for name in ("eyes", "hands"))
        assert revoked.wait(PATIENCE_S)
        assert stays.wait(PATIENCE_S)
        for change in ("removed", "demoted"):
            left = [identity for identity in before if identity.name != "eyes"]
            eyes_now = next(identity for identity in before if identity.name == "eyes")
            demoted = msgspec.structs.replace(eyes_now, role="publisher")
            keys.write_allowed(path, left if change == "removed" else [*left, demoted])
            hands.reload()
            until(lambda one=revoked: not (one.drain() or one.wait(2.5)), 20.0)  # the status comes every second
            assert stays.wait(PATIENCE_S)
            stays.drain()
            assert stays.wait(PATIENCE_S), "who stays hears on"
            keys.write_allowed(path, before)
            hands.reload()
            revoked.close()
            revoked = Follower(endpoint, [b"status"], site.keys_of("eyes"))
            assert revoked.wait(PATIENCE_S), "let in again"
        counted = {(c.source, c.reason) for c in hands.status().ingest.refused}
        assert ("(decisions)", "cut: a key was revoked") in counted
        reports = hands.status().ingest.reports
        seq = iter(range(10**6, 2 * 10**6))

        def said() -> bool:
            heard.send(*encode(UeReport(at_ns=1, source="gnb", seq=next(seq), ue="ue0", cell="cell0")))
            return hands.status().ingest.reports > reports

        until(said)
        revoked.close()
        stays.close()


def test_metrics_are_served(site: Site) -> None:
    def scraped() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{site.metrics}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    until(lambda: "cosched_mode" in scraped())
    text = scraped()
    assert 'cosched_info{baseline="pf-admit",policy="joint",site="balanced"' in text
    assert 'cosched_resource_planned_ratio{kind="comm",resource="cell0/ul"}' in text


MODULES = os.environ.get("TEST_NODE_MODULES", "")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not Path(MODULES, "zeromq").is_dir(), reason="TEST_NODE_MODULES has no zeromq: npm install it")
@pytest.mark.usefixtures("heard")
def test_a_client_in_javascript(site: Site, tmp_path: Path) -> None:
    shutil.copy(HELPERS / "control_client.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    command = ["node", tmp_path / "control_client.mjs", site.daemon.place.control, "js1", "ue1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["submitted"]["ok"], told["submitted"]["result"]["reason"]) == (True, "admitted")
    assert [lease["task"] for lease in told["leases"]] == ["js1"] * 3
    plans = [lease["plan"] for lease in told["leases"]]
    assert plans == sorted(plans)
    assert all(lease["valid_for_ms"] > 0 and lease["fallback"] == "drop" for lease in told["leases"])
    assert told["released"]["result"] == {"task": "js1", "released": True}
    assert told["unknown"]["error"]["code"] == "unknown_task"
