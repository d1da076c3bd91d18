"""Floods of well-formed messages: what an identity that is let in, or a process on this machine, may send at its worst.

Each takes a `Target`, sends as fast as it can for so many seconds, and returns how much. As a program, with the target
as JSON on stdin: `python -m cosched.bench.attacks.messages ATTACK SECONDS`, whose last line is the count.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from telemetry.bus import Curve, Dealer, Publisher
from telemetry.messages import LlmSession, UeReport, UeReportBatch, VideoClip
from telemetry.wire import encode

ROWS: Final = 20_000  # of a batch: 0.7 MB
LAST_SEQ: Final = 2**63 - 1
LARGE: Final = 64  # requests of a flood that are under way at a time, as far as they are answered
SESSION: Final = LlmSession(
    model="llama-3-8b", context_tokens=200, new_tokens=32, max_output_tokens=200, ttft_s=2.0, tpot_s=0.2
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where to, and the attacker's keys; without `public` the connection is plain."""

    telemetry: str
    control: str
    public: str = ""
    secret: str = ""
    server: str = ""
    cell: str = "cell0"

    @property
    def keys(self) -> Curve | None:
        """Keys of a connection."""
        return Curve(self.public, self.secret, self.server) if self.public else None


def _publish(target: Target, seconds: float, messages: Callable[[int], tuple[bytes, bytes]]) -> int:
    publisher, end_s = Publisher(target.telemetry, target.keys), time.monotonic() + seconds
    for n in itertools.count():
        if time.monotonic() > end_s:
            publisher.close()
            return n
        publisher.send(*messages(n))
    raise AssertionError


def _report(n: int, target: Target, seq: int) -> tuple[bytes, bytes]:
    return encode(
        UeReport(
            at_ns=0, source=f"evil/{n % 50}", seq=seq, ue=f"evil{n % 1000}", cell=target.cell, ul_efficiency_bps_hz=2.0
        )
    )


def sequence_numbers(target: Target, seconds: float) -> int:
    """Reports whose sequence numbers jump between the least and the greatest."""
    return _publish(target, seconds, lambda n: _report(n // 2, target, LAST_SEQ * (n % 2)))


def small_reports(target: Target, seconds: float) -> int:
    """One report after the other, without a pause."""
    made = [_report(n, target, n) for n in range(10_000)]
    return _publish(target, seconds, lambda n: made[n % len(made)])


def large_batches(target: Target, seconds: float) -> int:
    """Batches of 0.7 MB, each of other UEs."""
    made = [
        encode(
            UeReportBatch(
                at_ns=0, source="evil", seq=n, ue=tuple(f"evil-{n}-{i:07d}" for i in range(ROWS)),
                cell=(target.cell,) * ROWS, ul_efficiency_bps_hz=(2.5,) * ROWS,
            )
        )
        for n in range(20)
    ]  # fmt: skip
    return _publish(target, seconds, lambda n: made[n % len(made)])


def _ask(target: Target, seconds: float, request: Callable[[int], tuple[str, dict[str, Any]]]) -> int:
    """Requests, LARGE of them under way; those that are not answered are sent all the same, more slowly."""
    dealer, end_s = Dealer(target.control, target.keys), time.monotonic() + seconds
    open_, sent = 0, 0
    while time.monotonic() < end_s:
        if open_ < LARGE:
            verb, args = request(sent)
            dealer.send(msgspec.msgpack.encode({"verb": verb, "id": sent, "args": args}))
            sent, open_ = sent + 1, open_ + 1
            continue
        if not dealer.wait(0.05):
            open_ = LARGE - 1  # dropped, for all that is known
        open_ -= min(open_, len(dealer.drain()))
    dealer.close()
    return sent


def whatif_infinite(target: Target, seconds: float) -> int:
    """What-ifs with bandwidth that is no number."""
    values = (float("inf"), float("nan"), -float("inf"), 1e308)
    return _ask(target, seconds, lambda n: ("whatif", {"more_hz": {target.cell: values[n % len(values)]}}))


def whatif_copies(target: Target, seconds: float) -> int:
    """What-ifs with 2 000 further tasks each."""
    one = {"task": "evil", "ue": "evil0", "work": msgspec.to_builtins(SESSION)}
    return _ask(target, seconds, lambda _: ("whatif", {"submit": [one], "copies": 2_000}))


def lists(target: Target, seconds: float) -> int:
    """`list`, again and again."""
    return _ask(target, seconds, lambda _: ("list", {}))


def statuses(target: Target, seconds: float) -> int:
    """`status`, again and again."""
    return _ask(target, seconds, lambda _: ("status", {}))


def endless_clips(target: Target, seconds: float) -> int:
    """Clips that last 10^12 s, each another task."""
    clip = VideoClip(frame_flop=1e9, frame_bits=1e5, fps=1.0, deadline_s=0.5, frames=10**12)
    work = msgspec.to_builtins(clip)
    return _ask(target, seconds, lambda n: ("submit", {"task": f"evil{n}", "ue": "evil0", "work": work}))


def many_clips(target: Target, seconds: float) -> int:
    """Clips as long as a task may be, of one UE."""
    work = msgspec.to_builtins(VideoClip(frame_flop=1e9, frame_bits=1e5, fps=2.0, deadline_s=0.5, frames=7_000))
    return _ask(target, seconds, lambda n: ("submit", {"task": f"evil{n}", "ue": "evil0", "work": work}))


def submits_and_releases(target: Target, seconds: float) -> int:
    """Sessions submitted and let go at once."""
    work = msgspec.to_builtins(SESSION)
    return _ask(
        target,
        seconds,
        lambda n: (
            ("release", {"task": f"evil{n // 2}"})
            if n % 2
            else ("submit", {"task": f"evil{n // 2}", "ue": f"evil{n // 2 % 16}", "work": work})
        ),
    )


ATTACKS: Final[dict[str, Callable[[Target, float], int]]] = {
    one.__name__: one
    for one in (
        sequence_numbers, small_reports, large_batches, whatif_infinite, whatif_copies, lists, statuses, endless_clips,
        many_clips, submits_and_releases,
    )
}  # fmt: skip


def main() -> None:
    """Run one attack."""
    name, seconds = sys.argv[1:]
    target = msgspec.json.decode(sys.stdin.buffer.read(), type=Target)
    sys.stdout.write(f"{ATTACKS[name](target, float(seconds))}\n")


if __name__ == "__main__":
    main()
