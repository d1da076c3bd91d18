"""The state file: no content of it keeps a daemon from starting; nothing is lost, or young again, without a word."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from state_cases import S_NS, a_life, kept, killed, mutated, names

from cosched.daemon import statefile, wal
from cosched.daemon.store import AHEAD, Store, StoreFailed
from cosched.daemon.upkeep import KEPT_ASIDE
from cosched.errors import BadInput
from telemetry.messages import VideoClip

MUTATIONS = int(os.environ.get("STATE_MUTATIONS", "200"))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """Nothing is waited for: what counts is the files' content."""
    shm = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)


def test_any_damage_is_survived_and_none_is_silent(in_memory: Path) -> None:
    _, living, limit = a_life(in_memory)
    bad = in_memory / "bad"
    silent = told = 0
    for seed in range(MUTATIONS):
        shutil.copytree(in_memory / ("killed" if seed % 3 else "life"), bad)
        what = f"seed {seed}: {mutated(bad, seed)}"
        store = Store(bad / "state.sqlite")
        stored = store.load(2 * S_NS)
        found, notice = [k.row.offer.task for k in stored.tasks], store.notice
        assert stored.generation >= limit - AHEAD, what
        store.commit([kept("next")], [], 1)
        store.close()
        if seed % 5 == 0:
            again = Store(bad / "state.sqlite")
            assert names(again) == [*found, "next"], what
            assert again.notice == "", what
            again.close()
        if not notice:
            assert (found, stored.policy) == (living, "greedy"), f"{what}: lost without a word"
            silent += 1
        else:
            assert "\n" not in notice, what
            told += 1
        shutil.rmtree(bad)
    assert told > MUTATIONS // 4
    assert silent > MUTATIONS // 20


@pytest.mark.parametrize("where", ["head", "salt", "page", "checksum"])
def test_a_garbled_log_gives_back_every_task(tmp_path: Path, where: str) -> None:
    """SQLite stops at the first bad frame, without a word; what is behind it is as it was written."""
    path, living, _ = a_life(tmp_path)
    log = path.with_name(path.name + "-wal")
    data = bytearray(log.read_bytes())
    frame = wal.HEADER.size + 40 * (wal.FRAME.size + 4096)
    data[{"head": 9, "salt": frame + 9, "page": frame + wal.FRAME.size + 77, "checksum": frame + 17}[where]] ^= 0x10
    log.write_bytes(data)
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as plain:
        plain.execute("PRAGMA locking_mode=EXCLUSIVE")
    store = Store(path)
    assert names(store) == living
    assert "pages of the log" in store.notice
    assert "are lost" not in store.notice
    store.close()
    (aside,) = path.parent.glob("*.damaged-*-wal")
    assert aside.read_bytes() == data, "what there was is kept"


def test_a_log_that_is_cut_off_cleanly_or_gone_is_noticed(tmp_path: Path) -> None:
    path, _, limit = a_life(tmp_path)
    log = path.with_name(path.name + "-wal")
    whole = log.read_bytes()
    frames = wal.read(whole, 4096).whole
    half = next(i for i in range(len(frames) // 2, len(frames)) if frames[i].pages) + 1
    log.write_bytes(whole[: wal.HEADER.size + half * (wal.FRAME.size + 4096)])
    store = Store(path)
    assert "lacks the last" in store.notice
    assert "tasks of 41 are lost" in store.notice
    assert store.load(S_NS).generation >= limit - AHEAD
    store.close()


def test_rows_of_damaged_pages_are_counted_and_the_others_come_back(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    store = Store(path)
    store.load(S_NS)
    store.commit([kept(f"t{i}") for i in range(100)], [], 1)
    store.close()
    data = bytearray(path.read_bytes())
    at = data.index(b'"task":"t50"')
    data[at // 4096 * 4096 : at // 4096 * 4096 + 4096] = bytes(4096)
    path.write_bytes(data)
    store = Store(path)
    found = names(store)
    assert 80 < len(found) < 100
    assert found[0] == "t0", "what is before the page,"
    assert found[-1] == "t99", "and what is behind it"
    assert f"{len(found)} tasks are back; {100 - len(found)} are lost" in store.notice
    store.close()


def test_a_flipped_bit_within_a_row_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    store = Store(path)
    store.load(S_NS)
    store.commit([kept("a"), kept("b")], [], 1)
    store.close()
    data = path.read_bytes()
    assert data.count(b'"ttft_s":2') == 2
    path.write_bytes(data.replace(b'"ttft_s":2', b'"ttft_s":3', 1))
    store = Store(path)
    assert len(names(store)) == 1
    assert "1 tasks are back; 1 are lost" in store.notice
    store.close()


def test_damaged_files_are_kept_aside_but_not_without_end(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    for n in range(KEPT_ASIDE + 3):
        path.write_bytes(b"no database %d" % n)
        Store(path).close()
    aside = sorted(tmp_path.glob("*.damaged-*"))
    assert len(aside) == KEPT_ASIDE
    assert {p.read_bytes() for p in aside} == {b"no database %d" % n for n in range(3, KEPT_ASIDE + 3)}


def test_state_of_version_1_is_taken_over_and_of_a_later_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        db.execute(
            "CREATE TABLE tasks (n INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT UNIQUE NOT NULL, kept BLOB NOT NULL)"
        )
        rows = [("version", "1"), ("generation", "777"), ("policy", "greedy"), ("boot", ""), ("own/x", "y")]
        db.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        for i in range(3):
            db.execute("INSERT INTO tasks (task, kept) VALUES (?, ?)", (f"t{i}", msgspec.json.encode(kept(f"t{i}"))))
    db.close()
    store = Store(path)
    stored = store.load(2 * S_NS)
    assert ([k.row.offer.task for k in stored.tasks], store.notice) == (["t0", "t1", "t2"], "")
    assert (stored.generation, stored.policy, store.recall("x")) == (777, "greedy", "y")
    store._write(meta={"version": str(statefile.VERSION + 1)})
    store.close()
    with pytest.raises(BadInput, match="state of version 3"):
        Store(path)
    assert not list(tmp_path.glob("*.damaged-*"))


# --- generations ------------------------------------------------------------------------------------------------------


def test_generations_are_reserved_before_the_first_plan(tmp_path: Path) -> None:
    """A disk that refuses from the first plan on must not let them go back in the next life."""
    lives = itertools.count()
    path, highest = tmp_path / "0" / "state.sqlite", -1
    for n in lives:
        store = Store(path)
        begun = store.load(S_NS).generation
        assert begun > highest
        assert store.limit >= begun + AHEAD
        highest = begun + AHEAD // 3  # plans that change nothing write nothing
        with _no_room():
            store.commit([], [], highest)
            with pytest.raises(StoreFailed, match="state: "):
                store.commit([kept(f"t{i}") for i in range(200)], [], highest)
        path = killed(store, tmp_path / f"{n + 1}", path)
        if n == 3:
            break


def test_a_life_renews_its_reservation_long_before_it_is_used_up(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite")
    store.load(S_NS)
    store.commit([], [], AHEAD - 10)
    assert store.limit == 2 * AHEAD - 10
    store.close()
    again = Store(tmp_path / "state.sqlite")
    assert again.load(S_NS).generation == AHEAD - 10, "an orderly end gives back what nobody had"
    again.close()


def test_without_a_reservation_there_is_no_start(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    store = Store(path)
    with _no_room(1000), pytest.raises(StoreFailed, match="state: "):
        store.load(S_NS)
    store.load(S_NS)
    store.close()
    with _no_room(1000), pytest.raises(StoreFailed):
        Store(path)


def test_a_full_disk_does_not_keep_a_killed_daemon_from_starting(tmp_path: Path) -> None:
    """What a start writes goes over the log that the last life left: it takes up no new room."""
    path, living, limit = a_life(tmp_path)
    with _no_room(path.with_name(path.name + "-wal").stat().st_size):
        store = Store(path)
        assert names(store) == living
        assert store.limit > limit
        store.commit([kept("next")], [], 1)
        store.close()


class _no_room:  # noqa: N801  # reads like a function
    """The limit on file size stands in for the disk: the system refuses the write in the same way."""

    def __init__(self, n_bytes: int = 30_000) -> None:
        self._n_bytes = n_bytes

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._n_bytes, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


# --- clocks -----------------------------------------------------------------------------------------------------------

HOUR_NS = 3600 * S_NS
LIFE_NS = 42 * S_NS  # of SESSION: 2 s and 200 tokens of 0.2 s


def _after_a_boot(folder: Path, wall_ns: int, now_ns: int) -> int:
    """Submit at 100 s of a boot at wall clock 1000 h, write last at 110 s, boot anew; return the task's age then."""
    path = folder / "state.sqlite"
    store = Store(path, clock=lambda: 110 * S_NS, wall=lambda: 1000 * HOUR_NS, boot=lambda: "first")
    store.load(100 * S_NS)
    store.commit([kept("t", 100 * S_NS)], [], 1)
    store.close()
    store = Store(path, clock=lambda: now_ns, wall=lambda: wall_ns, boot=lambda: "second")
    (task,) = store.load(now_ns).tasks
    again = store.load(now_ns).tasks
    assert again == (task,), "moved once"
    store.close()
    assert task.channel.at_s <= now_ns / S_NS
    return now_ns - task.row.offer.at_ns


@pytest.mark.parametrize(
    ("wall_ns", "age_ns"),
    [
        (1000 * HOUR_NS + 20 * S_NS, 30 * S_NS),  # right: 10 s old when seen last, then 20 s down
        (0, 10 * S_NS),  # 1970, or any time before: nobody knows how long it was down
        (999 * HOUR_NS, 10 * S_NS),
        (10**6 * HOUR_NS, LIFE_NS),  # far ahead: at its end, not beyond
    ],
)
@pytest.mark.parametrize("now_ns", [S_NS, 500 * S_NS])
def test_a_wrong_wall_clock_makes_no_task_immortal(tmp_path: Path, wall_ns: int, age_ns: int, now_ns: int) -> None:
    assert _after_a_boot(tmp_path, wall_ns, now_ns) == age_ns


def test_in_the_same_boot_the_wall_clock_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    for wall_ns in (10**18, 0, 10**17):
        store = Store(path, wall=lambda at_ns=wall_ns: at_ns, boot=lambda: "same")
        store.commit([kept("t", S_NS), kept("future", 99 * S_NS)], [], 1)
        assert [k.row.offer.at_ns for k in store.load(5 * S_NS).tasks] == [S_NS, 5 * S_NS]
        store.close()


def test_a_task_that_lasts_for_ever_has_an_age_all_the_same(tmp_path: Path) -> None:
    """10^12 s are more than 64 bits hold in nanoseconds."""
    path = tmp_path / "state.sqlite"
    clip = VideoClip(frame_flop=1.0, frame_bits=1.0, fps=1e-9, deadline_s=1e12, frames=2**40)
    endless = kept("endless")
    offer = msgspec.structs.replace(endless.row.offer, work=clip)
    store = Store(path, boot=lambda: "first")
    store.load(S_NS)
    store.commit([msgspec.structs.replace(endless, row=msgspec.structs.replace(endless.row, offer=offer))], [], 1)
    store.close()
    store = Store(path, wall=lambda: 2**62, boot=lambda: "second")
    (task,) = store.load(S_NS).tasks
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(task)) is not None
    assert task.row.offer.work == clip
    store.close()
