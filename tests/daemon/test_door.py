"""The door: floods of connections, subscriptions and hang-ups in real processes; whoever was there before goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
from checkout import HELPERS
from daemon_cases import PATIENCE_S, until

from cosched.bench.attacks import connections as attacks
from cosched.daemon import gate
from cosched.daemon.children import door
from cosched.daemon.gate import most_connections
from telemetry.bus import Dealer, Follower, Publisher

PEER = HELPERS / "door_peer.py"
NAMES = ("telemetry", "control", "decisions")
NO_DOOR = -1  # between two


@dataclass
class Peer:
    """The process with the sockets."""

    process: subprocess.Popen[str]
    endpoints: dict[str, list[str]]

    def of(self, transport: str, *names: str) -> list[str]:
        return [e for n in names or NAMES for e in self.endpoints[n] if e.startswith(f"{transport}://")]

    def say(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
        return self.process.stdout.readline()

    def end(self) -> tuple[int, int, list[str], list[list[object]], int, dict[str, int]]:
        """Messages, topics, alarms, (socket, reason, n) refused, descriptors, open connections."""
        told = self.say("end")
        assert told, f"it was ended by {self.process.wait(10)}"
        return tuple(json.loads(told))  # type: ignore[return-value]

    @property
    def rss_mb(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096 / 1e6

    @property
    def door(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else NO_DOOR


@contextlib.contextmanager
def peer(folder: Path, descriptors: int = 1024, **variables: str) -> Iterator[Peer]:
    inside = {
        "RUNTIME_DIRECTORY": str(folder / "run"), "STATE_DIRECTORY": str(folder / "state"),
        "COSCHED_TELEMETRY_BIND": f'["ipc://{folder}/run/t.sock", "tcp://127.0.0.1:*"]',
        "COSCHED_CONTROL_BIND": '["ipc://{run}/c.sock", "tcp://127.0.0.1:*"]',
        "COSCHED_CONTROL_DECISIONS": '["ipc://{run}/d.sock", "tcp://127.0.0.1:*"]',
    }  # fmt: skip
    (folder / "run").mkdir(exist_ok=True)
    command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", sys.executable, str(PEER), str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **inside, **variables},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield Peer(process, json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


def attack(name: str, endpoints: Sequence[str], count: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cosched.bench.attacks.connections", name, ",".join(endpoints)]
    return subprocess.Popen([*command, str(count), str(seconds)], stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> attacks.Told:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return attacks.Told(**json.loads(out))


def asked(client: Dealer, patience_s: float = PATIENCE_S) -> float:
    """Ask once; return how long the answer took, in seconds."""
    client.drain()
    began = time.monotonic()
    client.send(b"{}")
    assert client.wait(patience_s)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flood_connections", "flood_curve_handshakes", "flood_garbage"])
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_2000_connections_at_256_descriptors_are_turned_away_and_others_go_on(
    name: str, transport: str, tmp_path: Path
) -> None:
    with peer(tmp_path, 256) as inside:
        before = Dealer(inside.of("ipc", "control")[0])
        follower = Follower(inside.of("tcp", "decisions")[0], [b"status"])
        asked(before)
        assert follower.wait(PATIENCE_S)
        flood = attack(name, inside.of(transport), 2_000, 6.0)
        longest_s = 0.0
        while flood.poll() is None:
            longest_s = max(longest_s, asked(before))
            follower.drain()
            assert follower.wait(PATIENCE_S), "decisions are still heard"
        assert longest_s < 2.0
        told = result(flood)
        assert told.opened > 500
        late = Dealer(inside.of(transport, "control")[0])
        assert asked(late, 10.0) < 10.0, "whoever comes after the flood is let in within seconds"
        until(lambda: asked(before) < 1.0)
        time.sleep(0.6)  # two reports of the door
        _, _, alarms, refused, descriptors, opened = inside.end()
        most = most_connections(1_000, 256)
        assert max(opened.values()) <= most
        assert descriptors < 256
        if name == "flood_connections":
            counts = {str(socket): 0 for socket, _, _ in refused}
            assert set(counts) == set(NAMES)
            assert sum(int(str(n)) for _, _, n in refused) > 100
            assert any("too many connections from one peer" in text for text in alarms)
        for one in (before, follower, late):
            one.close()


@pytest.mark.slow
def test_without_a_door_the_same_flood_ends_the_process(tmp_path: Path) -> None:
    """What this is all for: libzmq 4.3.5 aborts (ipc_listener.cpp). When this fails, the door may go."""
    with peer(tmp_path, 256, DIRECT="1") as inside:
        told = result(attack("flood_connections", inside.of("ipc", "control"), 2_000, 3.0))
        assert told.opened > 100
        assert inside.process.wait(PATIENCE_S) == -signal.SIGABRT


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_peers_that_hang_up_with_full_queues_and_pings_end_nothing(transport: str, tmp_path: Path) -> None:
    """The load that killed it: a paused reader, publishers until nothing goes any more, and their hang-up."""
    with peer(tmp_path) as inside:
        for _ in range(4):
            inside.say("pause")
            told = result(attack("hang_up_when_full", inside.of(transport, "telemetry"), 8, 10.0))
            assert told.opened == 8
            inside.say("go")
        client = Dealer(inside.of("ipc", "control")[0])
        asked(client)
        until(lambda: int(inside.say("count")) > 4 * 8 * 1_000)
        inside.end()
        client.close()


@pytest.mark.slow
@pytest.mark.parametrize("heartbeats", ["300", "0"])
def test_without_a_door_the_same_hang_ups_end_the_process(heartbeats: str, tmp_path: Path) -> None:
    """With heartbeats of ours or without: a stranger's PING is enough (stream_engine_base.cpp:310)."""
    with peer(tmp_path, DIRECT="1", HEARTBEATS=heartbeats) as inside:
        for _ in range(10):
            if inside.say("pause"):
                attack("hang_up_when_full", inside.of("ipc", "telemetry"), 8, 10.0).wait(PATIENCE_S)
            if not inside.say("go"):
                break
            time.sleep(0.3)
        assert inside.process.wait(PATIENCE_S) == -signal.SIGABRT


@pytest.mark.slow
def test_many_publishers_of_large_messages_and_a_paused_reader(tmp_path: Path) -> None:
    with peer(tmp_path, COSCHED_TELEMETRY_MAX_MESSAGE_BYTES="1048576") as inside:
        endpoints = inside.of("ipc", "telemetry") + inside.of("tcp", "telemetry")
        publishers = [Publisher(endpoint) for endpoint in endpoints for _ in range(10)]
        for one in publishers:  # until each is heard
            heard = int(inside.say("count"))
            until(lambda one=one, heard=heard: (one.send(b"a", b"b"), int(inside.say("count")) > heard)[1])
        inside.say("pause")
        for _ in range(200):
            for one in publishers:
                one.send(b"ran.ue", b"x" * 20_000)
        for one in publishers[::2]:
            one.close()
        inside.say("go")
        follower = Follower(inside.of("ipc", "decisions")[0], [b""])
        assert follower.wait(PATIENCE_S)
        until(lambda: int(inside.say("count")) >= 10 * 200)
        inside.end()
        for other in (*publishers[1::2], follower):
            other.close()


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_subscriber_with_2_million_topics_is_cut_and_costs_little(transport: str, tmp_path: Path) -> None:
    with peer(tmp_path) as inside:
        client = Dealer(inside.of("ipc", "control")[0])
        asked(client)
        before_mb = inside.rss_mb
        flood = attack("flood_subscriptions", inside.of(transport, "decisions"), 2_000_000, 8.0)
        longest_s, most_mb = 0.0, 0.0
        while flood.poll() is None:
            longest_s, most_mb = max(longest_s, asked(client)), max(most_mb, inside.rss_mb)
            time.sleep(0.05)
        assert longest_s < 1.0
        assert result(flood).lost >= 1
        assert most_mb < before_mb + 30
        until(lambda: inside.rss_mb < 1.1 * before_mb)
        late = Follower(inside.of(transport, "decisions")[0], [b"status"])
        assert late.wait(PATIENCE_S)
        time.sleep(0.6)  # two reports of the door
        _, topics, alarms, refused, _, _ = inside.end()
        assert topics < 150_000
        assert any(reason == "too many subscriptions" for _, reason, _ in refused)
        assert any("decisions: too many subscriptions" in text for text in alarms)
        client.close()
        late.close()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_what_one_sends_too_fast_waits_with_him_and_others_are_read(transport: str, tmp_path: Path) -> None:
    pace_bps, size, seconds = 1e6, 10_000, 4.0
    with peer(tmp_path, COSCHED_SECURITY_CONNECTION_BYTES_PER_S=str(pace_bps)) as inside:
        (endpoint,) = inside.of(transport, "telemetry")
        flooder, other = Publisher(endpoint), Publisher(endpoint)
        for one in (flooder, other):  # until each is heard
            heard = int(inside.say("count"))
            until(lambda one=one, heard=heard: (one.send(b"a", b"b"), int(inside.say("count")) > heard)[1])
        flooder.socket.setsockopt(zmq.SNDHWM, 10)
        client = Dealer(inside.of(transport, "control")[0])
        before, began_s, longest_s, sent = int(inside.say("count")), time.monotonic(), 0.0, 0
        while (took_s := time.monotonic() - began_s) < seconds:
            for _ in range(100):
                flooder.send(b"ran.ue", bytes(size))
            sent += 100 * size
            longest_s = max(longest_s, asked(client))
        taken = (int(inside.say("count")) - before) * size
        assert sent > 3 * pace_bps * (took_s + door.PACE_BURST_S), "it was a flood"
        assert 0.5 * pace_bps * took_s < taken < 1.2 * pace_bps * (took_s + door.PACE_BURST_S)
        assert longest_s < 1.0
        before = int(inside.say("count"))
        for _ in range(1_000):  # as fast as may be, and less than a burst
            other.send(b"ran.ue", b"x")
        until(lambda: int(inside.say("count")) >= before + 1_000, 2.0)
        _, _, alarms, refused, _, opened = inside.end()
        counts = {(socket, reason): n for socket, reason, n in refused}
        assert 1 <= int(str(counts.pop(("telemetry", door.FAST)))) <= took_s + 2
        assert not counts
        assert any(f"telemetry: {door.FAST}" in text for text in alarms)
        assert opened["telemetry"] == 2, "nobody was cut"
        for one in (flooder, other, client):
            one.close()


def test_much_at_once_after_connecting_is_no_flood(tmp_path: Path) -> None:
    with peer(tmp_path, COSCHED_SECURITY_CONNECTION_BYTES_PER_S="1e6") as inside:
        one = Publisher(inside.of("ipc", "telemetry")[0])
        until(lambda: (one.send(b"a", b"b"), int(inside.say("count")) > 0)[1])
        before = int(inside.say("count"))
        for _ in range(9):  # more than a connection that is new may send at once: it waits for 0.4 s
            one.send(b"ran.ue", bytes(100_000))
        until(lambda: int(inside.say("count")) == before + 9)
        _, _, alarms, refused, _, _ = inside.end()
        assert not any(alarms)
        assert not refused
        one.close()


def test_what_is_read_in_all_is_shared_by_peers_and_then_by_their_connections() -> None:
    with socket.socket() as listener:
        spec = {"name": "telemetry", "fd": os.dup(listener.fileno()), "to": "", "guarded": False}
        entry = door.Entry(spec | {"pace_bps": 8.0, "all_pace_bps": 16.0})
    assert entry.share_bps("10.0.0.1") == 8.0
    entry.fast = Counter({"10.0.0.1": 100, "10.0.0.2": 1})
    assert entry.share_bps("10.0.0.1") == 0.08
    assert entry.share_bps("10.0.0.2") == 8.0
    entry.fast = Counter({f"10.0.0.{i}": 1 for i in range(4)})
    assert entry.share_bps("10.0.0.1") == 4.0
    entry.listener.close()


def test_a_subscription_of_100_mb_ends_its_connection(tmp_path: Path) -> None:
    with peer(tmp_path) as inside:
        for endpoint in inside.of("ipc", "decisions") + inside.of("tcp", "decisions"):
            one = attacks.plain(endpoint, b"SUB")
            one.settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):
                one.sendall(bytes((attacks.LONG,)) + (100 << 20).to_bytes(8, "big") + b"\x01" * (1 << 20))
            with contextlib.suppress(ConnectionResetError):
                while one.recv(1 << 16):
                    pass
            one.close()
        assert inside.rss_mb < 400
        inside.end()


def test_a_subscriber_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    with peer(tmp_path, SIZE="20000") as inside:
        one = attacks.plain(inside.of("ipc", "decisions")[0], b"SUB")
        one.sendall(attacks.frame(0, b"\x01"))
        began_mb = inside.rss_mb
        time.sleep(12.0)  # door.STALLED_S and a little
        assert inside.rss_mb < began_mb + 300
        _, _, alarms, refused, _, opened = inside.end()
        assert ["decisions", "takes nothing of what waits for it", 1] in refused
        assert opened["decisions"] == 0
        assert alarms
        one.close()


def test_a_door_that_is_killed_is_replaced_and_its_peers_come_again(tmp_path: Path) -> None:
    with peer(tmp_path) as inside:
        client = Dealer(inside.of("tcp", "control")[0])
        follower = Follower(inside.of("ipc", "decisions")[0], [b"status"])
        asked(client)
        first = inside.door
        os.kill(first, signal.SIGKILL)
        until(lambda: inside.door not in (first, NO_DOOR))
        follower.drain()
        while not client.drain():  # a request under way when it died is lost
            client.send(b"{}")
            client.wait(0.2)
        follower.drain()
        assert follower.wait(PATIENCE_S)
        inside.end()
        client.close()
        follower.close()


def test_caps_fit_the_descriptors() -> None:
    assert most_connections(1_000, 65_536) == 1_000
    for descriptors in (256, 512, 1024):
        most = most_connections(1_000, descriptors)
        assert 1 <= most < 1_000
        assert 3 * most + 128 <= descriptors
        assert 6 * most + 32 <= descriptors


def test_a_door_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: its limit of processes is not to be touched, so the start is what fails."""
    entry = gate.GateEntry("control", gate.listen(f"ipc://{tmp_path}/c", guarded=False), tmp_path / "inner", False, {})
    monkeypatch.setattr(gate, "RETRY_S", 0.05)

    async def main() -> None:
        made = gate.Gate([entry], 10)
        made.attach(asyncio.get_running_loop(), lambda *_: None)
        first, tries = made.pid, []
        start = made._start

        def failing() -> subprocess.Popen[bytes]:
            tries.append(1)
            if len(tries) < 3:
                raise OSError(11, "Resource temporarily unavailable")
            return start()

        monkeypatch.setattr(made, "_start", failing)
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while made.pid == first:  # noqa: ASYNC110  # another process dies, which tells nobody
                await asyncio.sleep(0.01)
        assert len(tries) == 3
        made.shut()
        await asyncio.to_thread(made.wait)

    asyncio.run(main())
