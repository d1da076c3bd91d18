"""A configuration's sockets, files and keys as they are on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosched.api.access import Access
from cosched.api.keys import ALLOWED, read_allowed, read_pair
from cosched.config import wiring as build
from cosched.config.paths import runtime_dir, state_dir
from cosched.config.settings import LoadedSettings
from cosched.daemon import folders
from cosched.daemon.gate import Gate, GateEntry, listen, most_connections, raise_descriptors
from cosched.workloads.context import session_memory_bytes
from telemetry import bus

if TYPE_CHECKING:
    from cosched.daemon.metrics import Exporter

INNER: Final = ".door"  # folder in the runtime folder, of what the daemon binds behind its door
PACED: Final = 2.0  # connections at full pace are read together as fast as so many alone: half a core, with CURVE
SLACK: Final = 4  # a frame this many times too large is counted; beyond, ZeroMQ cuts the connection


# What followers may send: subscriptions, which the daemon remembers. Of usual length, 5 000 each and 100 000 in all.
FOLLOWER: Final = {"burst_bytes": 256 << 10, "rate_bps": 64, "held_bytes": 4 << 20, "all_bps": 128 << 10}


@dataclass(frozen=True, slots=True)
class Sockets:
    """What the daemon binds, and the gate before them."""

    telemetry: bus.TelemetrySocket
    control: bus.ControlSocket
    decisions: bus.DecisionSocket
    gate: Gate
    folder: Path  # that is locked

    async def close(self, linger_ms: int) -> None:
        """Close all, after what is queued was sent."""
        for socket in (self.telemetry, self.control, self.decisions):
            socket.close(linger_ms)
        self.gate.shut()
        await asyncio.to_thread(self.gate.wait)
        folders.give_back(self.folder)


def place(template: str) -> Path:
    """Fill in `{state}` and `{run}`."""
    return Path(filled(template))


def filled(template: str) -> str:
    """Fill in `{state}` and `{run}`."""
    return template.replace("{state}", str(state_dir())).replace("{run}", str(runtime_dir()))


def own(loaded: LoadedSettings) -> None:
    """Make the folders of state and captures, or see that nobody else can change what is in them. Raises BadInput."""
    folders.own(place(loaded.settings.state.dir))
    if loaded.settings.capture.enabled:
        folders.own(place(loaded.settings.capture.dir))


def bind(loaded: LoadedSettings, keys: bus.Curve | None) -> Sockets:
    """Take the runtime folder, open all endpoints and bind behind them. Raises BadEndpoint, BadInput."""
    settings = loaded.settings
    run = folders.own(runtime_dir())
    folders.take(run)
    inner = folders.fresh(run / INNER)
    pace_bps = settings.security.connection_bytes_per_s
    pace = {"pace_bps": pace_bps, "all_pace_bps": PACED * pace_bps}
    sockets: dict[str, tuple[bus.Bus, Sequence[str], Mapping[str, float]]] = {
        "telemetry": (
            bus.TelemetrySocket(keys, SLACK * settings.telemetry.max_message_bytes),
            settings.telemetry.bind,
            pace,
        ),
        "control": (bus.ControlSocket(keys, SLACK * settings.control.max_message_bytes), settings.control.bind, pace),
        "decisions": (bus.DecisionSocket(keys), settings.control.decisions, FOLLOWER),
    }
    entries: list[GateEntry] = []
    for name, (socket, templates, limits) in sockets.items():
        own = [_entry(inner, name, filled(t), keys is not None, limits) for t in templates]
        plain, guarded = ({e.to for e in own if e.guarded == with_keys} for with_keys in (False, True))
        socket.bind_behind(next(iter(plain), None), next(iter(guarded), None), [e.endpoint for e in own])
        entries += own
    most = most_connections(settings.security.max_connections, raise_descriptors())
    return Sockets(**{name: socket for name, (socket, _, _) in sockets.items()}, gate=Gate(entries, most), folder=run)  # type: ignore[arg-type]


def _entry(inner: Path, name: str, endpoint: str, has_keys: bool, limits: Mapping[str, float]) -> GateEntry:
    """Open one endpoint: ipc is plain, tcp asks for keys where there are some."""
    guarded = has_keys and endpoint.startswith("tcp://")
    if endpoint.startswith("ipc://"):
        folders.own(Path(endpoint.removeprefix("ipc://")).parent)
    return GateEntry(name, listen(endpoint, guarded=guarded), inner / f"{name[0]}{'k' * guarded}", guarded, limits)


def plant(loaded: LoadedSettings) -> build.Plant:
    """Return the configured site with its profiles. Raises BadInput."""
    text, where = build.site_text(loaded.settings.site)
    found = build.plant(text, where, loaded.settings.ue_devices)
    if not loaded.settings.cluster.is_placed:
        session_memory_bytes(found.profiles)  # nodes hold all models: there must be room for them
    return found


def security(loaded: LoadedSettings) -> tuple[bus.Curve | None, Access | None]:
    """Keys of the daemon and who is let in; (None, None) without CURVE. Raises BadInput."""
    folder = loaded.settings.security.keys
    if not folder:
        return None, None
    pair = read_pair(Path(folder) / f"{loaded.settings.security.key}.key")
    access = Access(read_allowed(Path(folder) / ALLOWED), time.monotonic())
    return bus.Curve(pair.public, pair.secret), access


def exporter(loaded: LoadedSettings) -> Exporter | None:
    """Return the Prometheus exporter, None where none is wanted. Raises BadInput."""
    listen = loaded.settings.metrics.listen
    if not listen:
        return None
    from cosched.daemon.metrics import Exporter  # prometheus_client takes 30 ms to import

    return Exporter(listen)


def warnings(loaded: LoadedSettings) -> list[str]:
    """What is right, and yet should be known, one line each."""
    listen = loaded.settings.metrics.listen
    if not listen or bus.is_loopback(f"tcp://{listen}"):
        return []
    return [
        f"metrics.listen = '{listen}': whoever reaches this machine can read the metrics; there are no keys for them"
    ]
