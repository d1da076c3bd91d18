"""SQLite's write-ahead log read by hand: which of its frames are as they were written (sqlite.org/fileformat2.html, 4).

SQLite itself stops at the first frame whose checksum does not hold, and says nothing of those behind it. A frame's
checksum goes on from that of the frame before, so each can be held against its own two neighbours: what is behind a
damaged frame is known to be whole all the same.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

HEADER: Final = struct.Struct(">8I")  # magic, format, page size, number of the checkpoint, two salts, two checksums
FRAME: Final = struct.Struct(">6I")  # page, pages after a commit (0: none here), two salts, two checksums
LITTLE: Final = 0x377F0682
BIG: Final = 0x377F0683
FORMAT: Final = 3007000
PAGE_SIZES: Final = frozenset(1 << n for n in range(9, 17))


class WalFrame(NamedTuple):
    """One page as a transaction left it. pages: of the whole file after a commit, 0 where the commit is later."""

    page: int
    pages: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Log:
    """What a log holds. `whole`: the frames that SQLite reads; `broken`: frames of this log that it does not reach.

    `kept`: all frames that are as they were written, those behind broken ones too.
    """

    page_bytes: int
    whole: tuple[WalFrame, ...] = ()
    broken: int = 0
    kept: tuple[WalFrame, ...] = ()


def read(data: bytes, page_bytes: int) -> Log:
    """Take a log apart. page_bytes: of the database, for a log whose own head is damaged."""
    if len(data) < HEADER.size + FRAME.size:
        return Log(page_bytes)
    magic, form, size, _, *salts, sum0, sum1 = HEADER.unpack_from(data)
    order = ">u4" if magic == BIG else "<u4"
    head = np.frombuffer(data, order, 6).astype(np.uint32)
    is_head = magic in {LITTLE, BIG} and form == FORMAT and size in PAGE_SIZES
    is_head = is_head and _sums(head[None, :], np.zeros((1, 2), np.uint32))[0].tolist() == [sum0, sum1]
    size = size if is_head else page_bytes
    rows = _rows(data, size)
    if not len(rows):
        return Log(size)
    heads = rows[:, : FRAME.size].copy().view(">u4").astype(np.uint32)  # (n, 6)
    if not is_head:
        salts = heads[0, 2:4].tolist()
    before = np.vstack([np.array([[sum0, sum1]], np.uint32), heads[:-1, 4:6]])
    words = np.hstack([rows[:, :8], rows[:, FRAME.size :]]).copy().view(order).astype(np.uint32)
    made = _sums(words, before)
    good = (made == heads[:, 4:6]).all(axis=1)
    for i in np.flatnonzero(
        ~good[:-1]
    ):  # its own checksum may be what is damaged: then the next goes on from the right one
        good[i] |= bool((_sums(words[i + 1 : i + 2], made[i : i + 1])[0] == heads[i + 1, 4:6]).all())
        good[i + 1] |= good[i]
    own = (heads[:, 2:4] == np.array(salts, np.uint32)).any(axis=1)  # others are left over from before a checkpoint
    chained = (made == heads[:, 4:6]).all(axis=1) & (heads[:, 2:4] == np.array(salts, np.uint32)).all(axis=1)
    n = int(np.argmin(chained)) if not chained.all() else len(chained)
    n = n if is_head else 0
    return Log(
        size,
        whole=_frames(rows, heads, range(n)),
        broken=int(own[n:].sum()),
        kept=_frames(rows, heads, np.flatnonzero(own & good).tolist()),
    )


def _rows(data: bytes, page_bytes: int) -> NDArray[np.uint8]:
    """(frames, bytes): a part of a frame at the end is of a write that never ended."""
    step = FRAME.size + page_bytes
    n = (len(data) - HEADER.size) // step
    return np.frombuffer(data, np.uint8, n * step, HEADER.size).reshape(n, step)


def _frames(rows: NDArray[np.uint8], heads: Words, which: range | list[int]) -> tuple[WalFrame, ...]:
    return tuple(WalFrame(int(heads[i, 0]), int(heads[i, 1]), rows[i, FRAME.size :].tobytes()) for i in which)


def _sums(words: Words, before: Words) -> Words:
    """(n, 2) checksums of rows of words (n, 2 k) that go on from `before` (n, 2).

    The recurrence s0 += x0 + s1, s1 += x1 + s0 over pairs of words is linear, modulo 2^32.
    """
    pairs = words.shape[1] // 2
    step, start = _weights(pairs)
    first, second = words[:, 0::2], words[:, 1::2]
    out = np.empty((len(words), 2), np.uint32)
    for row in (0, 1):
        out[:, row] = (first * step[row, 0]).sum(axis=1, dtype=np.uint32)
        out[:, row] += (second * step[row, 1]).sum(axis=1, dtype=np.uint32)
        out[:, row] += before[:, 0] * start[row, 0] + before[:, 1] * start[row, 1]
    return out


@functools.cache
def _weights(pairs: int) -> tuple[Words, Words]:
    """What each pair of words, and the sums before it, count in the two sums after `pairs`: (2, 2, pairs), (2, 2)."""
    step = np.empty((2, 2, pairs), np.uint32)
    (a, b), (c, d) = (1, 0), (1, 1)  # of the last pair
    for i in reversed(range(pairs)):
        step[:, :, i] = ((a, b), (c, d))
        (a, b), (c, d) = ((a + c, b + d), (a + 2 * c, b + 2 * d))
        a, b, c, d = (x & 0xFFFFFFFF for x in (a, b, c, d))
    power = ((1, 0), (0, 1))
    for _ in range(pairs):
        (a, b), (c, d) = power
        power = ((a + c) & 0xFFFFFFFF, (b + d) & 0xFFFFFFFF), ((a + 2 * c) & 0xFFFFFFFF, (b + 2 * d) & 0xFFFFFFFF)
    return step, np.array(power, np.uint32)


def image(database: bytes, page_bytes: int, frames: tuple[WalFrame, ...]) -> bytes:
    """Return the database with the transactions of these frames in it, those that were committed."""
    most = len(database) // page_bytes + len(frames) + 1  # a page beyond was never written
    frames = tuple(frame for frame in frames if 0 < frame.page <= most and frame.pages <= most)
    commits = [i for i, frame in enumerate(frames) if frame.pages]
    made = bytearray(database)
    for frame in frames[: commits[-1] + 1] if commits else ():
        end = frame.page * page_bytes
        made.extend(bytes(max(0, end - len(made))))
        made[end - page_bytes : end] = frame.content
    if commits:
        n_bytes = frames[commits[-1]].pages * page_bytes
        made.extend(bytes(max(0, n_bytes - len(made))))
        del made[n_bytes:]
    if len(made) > 20:
        made[18:20] = b"\x01\x01"  # it needs no log any more
    return bytes(made)
