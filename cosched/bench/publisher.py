"""The other end of the suite `ingest`: publishes rounds of reports, one for each line that it reads on stdin.

A line is `single N` (N reports) or `batch N` (N messages of ROWS reports each). Before, it says hello until it is told
`start`: a PUB socket drops what nobody has subscribed to yet.
"""

from __future__ import annotations

import select
import sys
from typing import Final

from telemetry import wire
from telemetry.bus import Curve, Publisher
from telemetry.messages import UeReport, UeReportBatch

ROWS: Final = 1_000
HELLO_S: Final = 0.02


def main(endpoint: str, public: str, secret: str, server: str) -> None:
    """Publish as told until stdin ends."""
    publisher = Publisher(endpoint, Curve(public, secret, server) if public else None)
    topic, hello = wire.encode(_report(0, 0))
    while not select.select([sys.stdin], [], [], HELLO_S)[0]:
        publisher.send(topic, hello)
    sys.stdin.readline()
    seq = 1
    for line in sys.stdin:
        kind, count = line.split()
        for message in _messages(kind, int(count), seq):
            publisher.send(*message)
        seq += int(count)
    publisher.close(linger_ms=1000)


def _messages(kind: str, count: int, seq: int) -> list[tuple[bytes, bytes]]:
    """Encoded beforehand, so that the publisher is never the slower end."""
    if kind == "single":
        return [wire.encode(_report(seq + i, i % ROWS)) for i in range(count)]
    return [wire.encode(_batch(seq + i)) for i in range(count)]


def _report(seq: int, ue: int) -> UeReport:
    return UeReport(
        at_ns=seq, source="bench", seq=seq, ue=f"ue{ue:04d}", cell="cell0", ul_efficiency_bps_hz=1.0 + ue / ROWS,
        dl_cqi=float(ue % 16), ul_sinr_db=12.5, prb_used_ul=4.0,
    )  # fmt: skip


def _batch(seq: int) -> UeReportBatch:
    return UeReportBatch(
        at_ns=seq, source="bench", seq=seq, ue=tuple(f"ue{i:04d}" for i in range(ROWS)), cell=("cell0",) * ROWS,
        ul_efficiency_bps_hz=tuple(1.0 + i / ROWS for i in range(ROWS)), ul_sinr_db=(12.5,) * ROWS,
        prb_used_ul=(4.0,) * ROWS,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
