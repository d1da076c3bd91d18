"""Files that ship with the package (config/, systemd/): found in a checkout and after a plain install alike."""

from __future__ import annotations

from pathlib import Path

from cosched.errors import BadInput

_HERE = Path(__file__).resolve().parent


def config_dir() -> Path:
    """Return the folder of shipped configuration: `cosched/_config` when installed, `config/` in a checkout."""
    installed = _HERE / "_config"
    return installed if installed.is_dir() else _HERE.parent / "config"


def config_file(group: str, name: str) -> Path:
    """Path of `config/<group>/<name>`. Raises BadInput that lists what there is."""
    path = config_dir() / group / name
    if path.is_file():
        return path
    there = sorted(p.name for p in (config_dir() / group).glob("*") if p.is_file())
    raise BadInput(f"config/{group}/{name}: no such file; there are: {', '.join(there) or 'none'}")
