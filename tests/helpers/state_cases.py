"""State files as a killed daemon leaves them, and what may befall them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from cosched.core.channel import ChannelRow
from cosched.core.snapshot import TaskRow
from cosched.daemon.store import Kept, Store
from telemetry.messages import LlmSession, TaskOffer

S_NS = 1_000_000_000
SESSION = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=200, ttft_s=2.0, tpot_s=0.2
)
FILES = ("state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "state.sqlite.note")


def kept(task: str, at_ns: int = S_NS) -> Kept:
    offer = TaskOffer(at_ns=at_ns, source="s", seq=0, task=task, ue="u", work=SESSION)
    row = TaskRow(offer=offer, cell="cell0", table_cell="cell0", point="k=0/edge0")
    return Kept(row=row, channel=ChannelRow("u", 2.0, 0.1, 0.5))


def names(store: Store, now_ns: int = 2 * S_NS) -> list[str]:
    return [k.row.offer.task for k in store.load(now_ns).tasks]


def killed(store: Store, copy: Path, path: Path) -> Path:
    """Copy the files of a store in use, as a kill -9 would leave them, then close it; return the copy's path."""
    copy.mkdir(parents=True)
    for file in path.parent.iterdir():
        if file.is_file() and not file.name.endswith(".lock"):
            shutil.copy(file, copy)
    store.close()
    return copy / path.name


def a_life(folder: Path, n: int = 60) -> tuple[Path, list[str], int]:
    """Tasks come, some go, then the daemon is killed: (its files, the tasks that it had accepted, its generation)."""
    path = folder / "life" / "state.sqlite"
    store = Store(path)
    store.load(S_NS)
    for i in range(n):
        store.commit([kept(f"t{i}")], [f"t{i - 1}"] if i % 3 == 0 else [], store.limit - 10_000 + i)
    store.set_policy("greedy")
    living = [f"t{i}" for i in range(n) if i % 3 != 2 or i == n - 1]
    limit = store.limit
    return killed(store, folder / "killed", path), living, limit


def mutated(folder: Path, seed: int) -> str:
    """Do something bad to one file or two; return what."""
    rng = random.Random(seed)  # noqa: S311
    done = []
    for name in rng.sample(FILES[:3] + FILES[1:2], rng.choice((1, 1, 2))):
        path = folder / name
        data = bytearray(path.read_bytes() if path.exists() else b"")
        mutate = rng.choice(MUTATIONS)
        path.write_bytes(mutate(data, rng))
        done.append(f"{mutate.__name__} of {name}")
    return ", ".join(done)


def _flipped(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 3, 50)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def _garbage(data: bytearray, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 100, 5_000, len(data))))


def _holed(data: bytearray, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(data) + 1), rng.choice((16, 512, 4096, 20_000))
    fill = rng.choice((b"\0", b"\xff")) * n if rng.random() < 0.7 else rng.randbytes(n)
    data[at : at + n] = fill[: len(data) - at]
    return bytes(data)


def _longer(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data) + rng.randbytes(rng.choice((1, 4096, 4120, 10_000)))


def _swapped(data: bytearray, rng: random.Random) -> bytes:
    """Two pages change places, or one is doubled."""
    pages = [bytes(data[i : i + 4096]) for i in range(0, len(data), 4096)]
    if len(pages) > 1:
        a, b = rng.sample(range(len(pages)), 2)
        pages[a], pages[b] = pages[b], rng.choice((pages[a], pages[b]))
    return b"".join(pages)


MUTATIONS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _flipped, _flipped, _cut, _garbage, _holed, _longer, _swapped,
)  # fmt: skip
