"""Files that ship with the package (config/, systemd/): found in a checkout and after a plain install alike."""

from __future__ import annotations

from pathlib import Path

from cosched.errors import BadInput

_HERE = Path(__file__).resolve().parent


def _shipped(installed: str, in_checkout: str) -> Path:
    """Folder inside the installed package, or beside it in a checkout (docs/decisions/0003-packaging-of-config.md)."""
    inside = _HERE / installed
    return inside if inside.is_dir() else _HERE.parent / in_checkout


def config_dir() -> Path:
    """Return the folder of shipped configuration: `cosched/_config` when installed, `config/` in a checkout."""
    return _shipped("_config", "config")


def systemd_dir() -> Path:
    """Return the folder of shipped units: `cosched/_systemd` when installed, `systemd/` in a checkout."""
    return _shipped("_systemd", "systemd")


def sample_trace() -> Path:
    """Path of the trace that `replay` and `demo` take by default."""
    return config_file("traces", "sample.mcap")


def config_file(group: str, name: str) -> Path:
    """Path of `config/<group>/<name>`. Raises BadInput that lists what there is."""
    path = config_dir() / group / name
    if path.is_file():
        return path
    there = sorted(p.name for p in (config_dir() / group).glob("*") if p.is_file())
    raise BadInput(f"config/{group}/{name}: no such file; there are: {', '.join(there) or 'none'}")
