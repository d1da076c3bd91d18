"""Plays the cluster part: a daemon with its Ray, the radio of four UEs, their sessions, and the death of a node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from cosched.api.async_client import AsyncClient
from cosched.api.messages import ClusterNode, Lease, Status
from cosched.cluster.processes import Left
from cosched.demo.child import LAST_LINES, Child, child
from cosched.demo.messages import Checked, Ready, Said, Setup, Token, UeEnded, UeMoved
from cosched.demo.player import Player, first_error
from cosched.demo.stage import UES, Stage
from cosched.errors import CoschedError
from telemetry.bus import Publisher

PATIENCE_S: Final = 60.0  # for an answer of the daemon, and for the next word of the UEs
CLUSTER_S: Final = 120.0  # for Ray's nodes to serve
LOOK_S: Final = 0.1  # between two looks at what tells nobody
RATE_TOKENS: Final = 15  # over which tokens a second are counted


class DemoFailed(CoschedError):
    """Something that the demo shows does not hold."""


@dataclass(slots=True)
class PlayedSession:
    """What is known of a UE's session."""

    ue: str
    lease: Lease | None = None
    tokens: list[int] = field(default_factory=list)
    came_s: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_TOKENS))
    latest: Token | None = None
    moves: list[UeMoved] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)  # each at another operating point than the one before
    ended: UeEnded | None = None
    checked: Checked | None = None

    @property
    def tokens_per_s(self) -> float:
        """Over the last tokens; 0 where there are not two."""
        span_s = self.came_s[-1] - self.came_s[0] if self.came_s else 0.0
        return (len(self.came_s) - 1) / span_s if span_s else 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be heard of it: what came was checked, or nothing came."""
        return self.checked is not None or (self.ended is not None and not self.ended.tokens)

    def granted(self, lease: Lease) -> None:
        """Take a lease, or the word that there is none."""
        if lease.point and (not self.leases or self.leases[-1].point != lease.point):
            self.leases.append(lease)
        self.lease = lease


@dataclass(slots=True)
class Played:
    """All sessions, and what became of the node that was killed."""

    tokens: int  # that each session is to have
    sessions: dict[str, PlayedSession] = field(default_factory=lambda: {ue: PlayedSession(ue) for ue in UES})
    victim: str = ""
    killed_s: float = 0.0  # on the monotonic clock
    noticed: bool = False  # by the daemon
    nodes: Sequence[ClusterNode] = ()

    def heard(self, said: Said) -> None:
        """Take what a UE says."""
        match said:
            case Token():
                session = self.sessions[said.ue]
                session.tokens.append(said.token)
                session.came_s.append(time.monotonic())
                session.latest = said
            case UeMoved():
                self.sessions[said.ue].moves.append(said)
            case UeEnded():
                self.sessions[said.ue].ended = said
            case Checked():
                self.sessions[said.ue].checked = said
            case Ready():
                pass

    def state_of(self, node: str) -> str:
        """What the daemon says of a node."""
        return next((n.state for n in self.nodes if n.node == node), "")

    @property
    def is_halfway(self) -> bool:
        """Whether all sessions that still run have half of their tokens."""
        return all(len(s.tokens) >= self.tokens // 2 for s in self.sessions.values() if s.ended is None)

    def busiest(self) -> str:
        """Return the node with the most sessions, the last by name among equals; "" where there is none."""
        held = Counter(s.leases[-1].node for s in self.sessions.values() if s.leases and s.ended is None)
        return max(held, key=lambda node: (held[node], node), default="")


Show = Callable[[bool, Played], None]  # whether something happened


@dataclass(frozen=True, slots=True)
class DemoCluster:
    """The processes of this part: a daemon, which starts a Ray of its own, and the UEs'."""

    stage: Stage
    daemon: Child
    ues: asyncio.subprocess.Process


@contextlib.asynccontextmanager
async def started(stage: Stage) -> AsyncIterator[DemoCluster]:
    """Start the processes and go on; they need a while until `play` finds them ready, and end on the way out."""
    async with child(stage.folder, stage.config, stage.environment) as daemon:
        setup = Setup(
            folder=str(stage.folder), checkpoint=str(stage.checkpoint), control=daemon.control,
            telemetry=daemon.telemetry, tokens=stage.tokens, channels={ue: stage.channel(ue) for ue in UES},
        )  # fmt: skip
        with (stage.folder / "ues.log").open("ab") as log:
            ues = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cosched.demo.ue", msgspec.json.encode(setup).decode()),
                env=os.environ | stage.environment, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            yield DemoCluster(stage, daemon, ues)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ues.pid, signal.SIGKILL)  # it is a session of its own, with a process for each UE
            await ues.wait()


async def play(cluster: DemoCluster, show: Show) -> Played:
    """Play the radio, have the UEs ask, kill a node. Raises DemoFailed, DaemonEnded, NoAnswer."""
    played, publisher = Played(cluster.stage.tokens), Publisher(cluster.daemon.telemetry)
    try:
        await cluster.daemon.unless_it_ends(_play(cluster, publisher, played, show))
    finally:
        publisher.close()
    return played


async def _play(cluster: DemoCluster, publisher: Publisher, played: Played, show: Show) -> None:
    await cluster.daemon.listening()
    async with AsyncClient(cluster.daemon.control, timeout_s=PATIENCE_S) as client:
        player = Player(cluster.stage.messages, [], {}, 1.0, publisher, client)
        await player.tune_in()
        ready = await _hear(cluster)
        assert isinstance(ready, Ready)  # noqa: S101  # the first that it says
        await _until_ready(client, played, lambda found: _is_served(found, ready.weight_bytes))
        try:
            async with asyncio.TaskGroup() as beside:
                await _serve(cluster, client, played, player, beside, show)
        except ExceptionGroup as group:
            raise first_error(group) from None


async def _serve(
    cluster: DemoCluster, client: AsyncClient, played: Played, player: Player, beside: asyncio.TaskGroup, show: Show
) -> None:
    """Play the radio and let the UEs begin when the daemon has heard it; all else goes on beside."""
    began_s = time.monotonic()
    tasks = [beside.create_task(work) for work in (player.play(), _follow(client, played))]
    await _until_ready(client, played, lambda found: found.mode == "STEADY")
    tasks.append(beside.create_task(_look(client, cluster, played, show)))
    await _converse(cluster, played, began_s)
    for task in tasks:
        task.cancel()


async def _converse(cluster: DemoCluster, played: Played, began_s: float) -> None:
    """Have the UEs begin, and listen to them until all is said."""
    assert cluster.ues.stdin is not None  # noqa: S101  # opened as a pipe
    cluster.ues.stdin.write(f"{began_s}\n".encode())
    while not all(session.is_over for session in played.sessions.values()):
        played.heard(await _hear(cluster))


async def _hear(cluster: DemoCluster) -> Said:
    """Wait for the next word of the UEs. Raises DemoFailed."""
    assert cluster.ues.stdout is not None  # noqa: S101  # opened as a pipe
    try:
        async with asyncio.timeout(PATIENCE_S):
            line = await cluster.ues.stdout.readline()
    except TimeoutError:
        raise DemoFailed(f"the UEs have said nothing for {PATIENCE_S:.0f} s") from None
    if not line:
        lines = (cluster.stage.folder / "ues.log").read_text(errors="replace").splitlines()[-LAST_LINES:]
        raise DemoFailed(f"a UE's process ended before its session was over: {' | '.join(lines) or 'without a word'}")
    said: Said = msgspec.json.decode(line, type=Said)
    return said


async def _until_ready(client: AsyncClient, played: Played, is_ready: Callable[[Status], bool]) -> None:
    """Wait for the daemon. Raises DemoFailed."""
    end_s = time.monotonic() + CLUSTER_S
    while time.monotonic() < end_s:
        found = await client.status()
        played.nodes = found.cluster.nodes
        if is_ready(found):
            return
        await asyncio.sleep(LOOK_S)
    nodes = "; ".join(f"{node.node} {node.state} {node.why}".strip() for node in found.cluster.nodes)
    said = f"{found.mode}, cluster {found.cluster.state} {found.cluster.why}; {nodes}; {'; '.join(found.alarms)}"
    raise DemoFailed(f"the daemon and its local Ray were not ready within {CLUSTER_S:.0f} s: {said}")


def _is_served(found: Status, weight_bytes: int) -> bool:
    """Whether all nodes have all layers loaded, and take activations."""
    nodes = found.cluster.nodes
    return bool(nodes) and all(n.state == "up" and n.endpoint and n.used_bytes >= weight_bytes for n in nodes)


async def _follow(client: AsyncClient, played: Played) -> None:
    async for lease in client.follow(*UES):
        played.sessions[lease.task].granted(lease)


async def _look(client: AsyncClient, cluster: DemoCluster, played: Played, show: Show) -> None:
    """Show the state again and again; half-way, kill the node that has the most to do."""
    while True:
        await asyncio.sleep(LOOK_S)
        before = played.state_of(played.victim)
        played.nodes = (await client.status()).cluster.nodes
        event = played.state_of(played.victim) != before
        played.noticed |= bool(played.victim) and played.state_of(played.victim) != "up"
        if not played.victim and played.is_halfway and (node := played.busiest()):
            actor = next(n.pid for n in played.nodes if n.node == node)
            played.victim, played.killed_s, event = node, time.monotonic(), True
            _kill(cluster.stage.folder / "state" / "cluster.json", node, actor)
        show(event, played)


def _kill(note: Path, node: str, actor: int) -> None:
    """Kill a Ray node of the local cluster: its raylet, and the worker on it. Raises DemoFailed."""
    noted = msgspec.json.decode(note.read_bytes(), type=Left)
    raylets = [pid for pid in noted.processes if _is_raylet_of(pid, node)]
    if not raylets:
        raise DemoFailed(f"no process of the local cluster is the Ray node of {node}")
    for pid in (*raylets, actor):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_raylet_of(pid: int, node: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"/raylet") and any(node.encode() in word for word in words if b"cosched_node" in word)
