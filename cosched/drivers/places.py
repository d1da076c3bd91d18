"""A configuration's sockets, files and keys as they are on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cosched import build
from cosched.access import Access
from cosched.keys import ALLOWED, read_allowed, read_pair
from cosched.places import runtime_dir, state_dir
from cosched.settings import Loaded
from cosched.workloads.context import session_memory_bytes
from telemetry import bus

if TYPE_CHECKING:
    from cosched.drivers.metrics import Exporter

DIR_MODE: Final = 0o750  # of folders made for sockets
SLACK: Final = 4  # a frame this many times too large is counted; beyond, ZeroMQ cuts the connection


@dataclass(frozen=True, slots=True)
class Sockets:
    """What the daemon binds; `keys` is None without CURVE."""

    telemetry: bus.Telemetry
    control: bus.Control
    decisions: bus.Decisions

    def close(self, linger_ms: int) -> None:
        """Close all, after what is queued was sent."""
        for socket in (self.telemetry, self.control, self.decisions):
            socket.close(linger_ms)


def place(template: str) -> Path:
    """Fill in `{state}` and `{run}`."""
    return Path(filled(template))


def filled(template: str) -> str:
    """Fill in `{state}` and `{run}`."""
    return template.replace("{state}", str(state_dir())).replace("{run}", str(runtime_dir()))


def endpoints(templates: Sequence[str]) -> list[str]:
    """Fill in the places; the folders of ipc sockets are made."""
    found = [filled(t) for t in templates]
    for endpoint in found:
        if endpoint.startswith("ipc://"):
            Path(endpoint.removeprefix("ipc://")).parent.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
    return found


def bind(loaded: Loaded, keys: bus.Curve | None) -> Sockets:
    """Bind everything. Raises BadEndpoint."""
    settings = loaded.settings
    sockets = Sockets(
        bus.Telemetry(keys, SLACK * settings.telemetry.max_message_bytes),
        bus.Control(keys, SLACK * settings.control.max_message_bytes),
        bus.Decisions(keys),
    )
    sockets.telemetry.bind(endpoints(settings.telemetry.bind))
    sockets.control.bind(endpoints(settings.control.bind))
    sockets.decisions.bind(endpoints(settings.control.decisions))
    return sockets


def plant(loaded: Loaded) -> build.Plant:
    """Return the configured site with its profiles. Raises BadInput."""
    text, where = build.site_text(loaded.settings.site)
    found = build.plant(text, where, loaded.settings.ue_devices)
    if not loaded.settings.cluster.is_placed:
        session_memory_bytes(found.profiles)  # nodes hold all models: there must be room for them
    return found


def security(loaded: Loaded) -> tuple[bus.Curve | None, Access | None]:
    """Keys of the daemon and who is let in; (None, None) without CURVE. Raises BadInput."""
    folder = loaded.settings.security.keys
    if not folder:
        return None, None
    pair = read_pair(Path(folder) / f"{loaded.settings.security.key}.key")
    access = Access(read_allowed(Path(folder) / ALLOWED), time.monotonic())
    return bus.Curve(pair.public, pair.secret), access


def exporter(loaded: Loaded) -> Exporter | None:
    """Return the Prometheus exporter, None where none is wanted. Raises BadInput."""
    listen = loaded.settings.metrics.listen
    if not listen:
        return None
    from cosched.drivers.metrics import Exporter  # prometheus_client takes 30 ms to import

    return Exporter(listen)
