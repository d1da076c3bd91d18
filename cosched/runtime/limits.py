"""What a host lends out, in all and to one identity; whoever asks for more is refused with a code.

An identity is the name that its CURVE key goes by, or a connection where it is plain.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cosched.errors import BadInput


class HostLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one host. `*_each`: of one identity."""

    sessions: int = 256
    sessions_each: int = 64
    kv_bytes: int = 8 << 30  # of all sessions
    kv_bytes_each: int = 4 << 30
    spare_bytes: int = 256 << 20  # of the machine's memory that KV caches leave to others, whatever they may have
    frame_bytes: int = 256 << 20  # of one frame, less where no model needs that; longer ones close their connection
    waiting_bytes: int = 1 << 30  # of frames of requests that wait for their turn
    waiting_bytes_each: int = 256 << 20
    unread_bytes: int = 1 << 30  # of answers on their way to whoever reads slowly
    unread_bytes_each: int = 512 << 20
    waiting: int = 256  # requests of one session that wait for their turn
    requests_each: int = 1_024  # that wait, or are under way at other hosts
    requests_per_s: float = 2_000.0  # of one identity; a burst of one second's worth is let through
    step_tokens: int = 512  # of one step: whoever asks for more waits for turns between
    batch: int = 16  # sessions in one step; 1: each by itself, to the last bit as if it were alone
    chunk_tokens: int = 64  # of prefills in a step while others decode, where no length of a step is planned
    idle_s: float = 600.0  # a session that nobody uses for so long is closed
    hosts: int = 64  # other hosts connected to at a time
    hosts_each: int = 8  # ... for the sake of one identity
    reach: str = "tcp://*"  # shell pattern of the other hosts' endpoints

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that is none."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int | float) and not (0 <= value < float("inf")):
                raise ValueError(f"{name} = {value}: 0 or more")


def limits_of(items: Iterable[str]) -> HostLimits:
    """Read NAME=VALUE. Raises BadInput."""
    told: dict[str, str] = {}
    for item in items:
        name, _, value = item.partition("=")
        if name not in HostLimits.__struct_fields__:
            near = difflib.get_close_matches(name, HostLimits.__struct_fields__, 1, 0.0)[0]
            raise BadInput(f"limit '{item}': there is none of that name; the nearest is {near}")
        told[name] = value
    try:
        return msgspec.convert(told, HostLimits, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(f"limits: {error}") from None


def spare_bytes() -> float:
    """Bytes of memory that this machine has left, and this group of processes in it; infinite where Linux does not say.

    proc_meminfo(5): MemAvailable counts what caches hold and would give; cgroups v2: memory.max, memory.current.
    """
    found = math.inf
    try:
        found = 1024.0 * _field(Path("/proc/meminfo"), b"MemAvailable:")
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_bytes().strip()
        if limit.isdigit():
            used = float((group / "memory.current").read_bytes()) - _field(group / "memory.stat", b"inactive_file")
            found = min(found, float(limit) - used)
    except (OSError, ValueError, StopIteration):
        return found
    return found


def _field(path: Path, name: bytes) -> float:
    return float(next(line.split()[1] for line in path.read_bytes().splitlines() if line.startswith(name)))
