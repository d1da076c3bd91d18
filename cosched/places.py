"""Where sockets, state and captures lie by default: systemd's folders (systemd.exec(5)), else the user's (XDG)."""

from __future__ import annotations

import os
import tempfile
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
