"""`cosched agent`: publishes this node's compute telemetry to the daemon."""

from __future__ import annotations

import signal
import socket
import sys
import time
from typing import Annotated, Literal

import typer

from cosched.cli.common import JsonFlag
from cosched.errors import BadInput


def agent(
    *,
    node: Annotated[str, typer.Option(help="This node's id in the site; none: the host's name.")] = "",
    connect: Annotated[str, typer.Option(help="The daemon's telemetry socket.")] = "tcp://127.0.0.1:5551",
    period: Annotated[float, typer.Option(min=0.05, help="Seconds between reports.")] = 1.0,
    load: Annotated[
        Literal["auto", "cpu", "gpu"],
        typer.Option(help="Whose load is the node's background; auto: the GPU's where there is one."),
    ] = "auto",
    gpu: Annotated[int, typer.Option(min=0, help="Which GPU, as NVML counts them.")] = 0,
    own: Annotated[
        list[str] | None, typer.Option(help="Name of a process that runs our tasks; not background.")
    ] = None,
    key: Annotated[str, typer.Option(help="Own key pair: a name in the keys folder, or a file.")] = "",
    server: Annotated[str, typer.Option(help="The daemon's public key, with --key.")] = "",
    count: Annotated[int, typer.Option(min=0, help="Stop after so many reports; 0: never.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Publish this node's compute telemetry to the daemon.

    CPU and memory, GPU by NVML where there is one (pip install 'cosched[nvml]'), RTT of a TCP handshake with the
    daemon. --json prints each report as well, one a line.

    Example: cosched agent --node edge0 --connect tcp://10.0.0.5:5551 --key edge0 --server 'PUBLIC'
    """
    import msgspec

    from cosched.api.client import curve
    from telemetry.agent import Nvml, Reading, Reporter, read, tcp_rtt
    from telemetry.bus import Publisher
    from telemetry.wire import encode

    device = Nvml.open(gpu)
    if load == "gpu" and device is None:
        raise BadInput(f"--load gpu: NVML finds no GPU {gpu}; is the driver there, and the package nvidia-ml-py?")
    names = frozenset(own or ())
    publisher = Publisher(connect, curve(key, server))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def reading() -> Reading:
        return read(names, (lambda _: None) if device is None else device.read, lambda: tcp_rtt(connect))

    reporter = Reporter(node or socket.gethostname(), "cpu" if load == "cpu" or device is None else "gpu", reading())
    due_s = time.monotonic()
    while not count or reporter.seq < count:
        due_s = max(due_s + period, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))
        report = reporter.report(reading(), time.time_ns())
        publisher.send(*encode(report))
        if as_json:
            typer.echo(msgspec.json.encode(report).decode())
            sys.stdout.flush()
    publisher.close(linger_ms=1000)
