"""Where sockets, state and captures lie by default: systemd's folders (systemd.exec(5)), else the user's (XDG)."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


def runtime_dir() -> Path:
    """Folder of sockets: $RUNTIME_DIRECTORY, else `cosched` in $XDG_RUNTIME_DIR, else one of this user's in /tmp."""
    if under_systemd := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(under_systemd.partition(":")[0])
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "cosched"
    return Path(tempfile.gettempdir()) / f"cosched-{os.getuid()}"


def state_dir() -> Path:
    """Folder of state and captures: $STATE_DIRECTORY, else `cosched` in $XDG_STATE_HOME or ~/.local/state."""
    if under_systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(under_systemd.partition(":")[0])
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cosched"


def control_endpoint() -> str:
    """Where a daemon of this user or service answers."""
    return f"ipc://{runtime_dir()}/control.sock"


def decisions_endpoint() -> str:
    """Where it publishes decisions."""
    return f"ipc://{runtime_dir()}/decisions.sock"


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of a daemon that has all its things in one."""

    folder: Path

    @property
    def control(self) -> str:
        """Endpoint of its control socket."""
        return f"ipc://{self.folder}/run/control.sock"

    @property
    def telemetry(self) -> str:
        """Endpoint of its telemetry bus; its configuration says so too."""
        return f"ipc://{self.folder}/run/telemetry.sock"

    @property
    def variables(self) -> dict[str, str]:
        """What tells a daemon that it lives there."""
        return {"STATE_DIRECTORY": f"{self.folder}/state", "RUNTIME_DIRECTORY": f"{self.folder}/run"}
