"""A peer on real sockets that answers typed requests from a table: what a client is held to without a whole daemon."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cosched.api import messages as api
from telemetry.bus import ControlSocket, DecisionSocket
from telemetry.messages import Reserved

Handler = Callable[[api.Args], object]

LEASE = api.Lease(
    at_ns=1,
    source="daemon",
    seq=7,
    task="t1",
    plan=7,
    reason="admitted",
    point="k=4@edge0",
    split_layer=4,
    precision_bits=8,
    cell="cell0",
    node="edge0",
    bandwidth_hz=1.8e6,
    weight_prb=10.0,
    weight_node=0.125,
    reserved=Reserved(node=0.125),
    predicted_s=(0.4, 0.09),
    slack_s=(0.1, 0.01),
    valid_until_ns=500_000_001,
    ue="ue7",
    promised=True,
    valid_for_ms=500.0,
    at_unix_s=1.0,
    text="Admitted.",
)
REFUSED = api.Lease(
    at_ns=1,
    source="daemon",
    seq=8,
    task="t2",
    plan=8,
    reason="rejected_no_capacity",
    binding_resource="cell0/ul",
    text="Rejected: full.",
)
VIEW = api.TaskView(
    task="t1", ue="ue7", kind="llm", weight=1.0, age_s=2.0, phase=1, done=12, reported=True, lease=LEASE
)
STATUS = api.Status(
    version="0",
    pid=1,
    site="balanced",
    policy="joint",
    baseline="pf-admit",
    mode="STEADY",
    mode_since_s=5.0,
    alarms=("disk full",),
    uptime_s=9.0,
    generation=7,
    tasks=1,
    promised=1,
    value=1.0,
    bound=1.01,
    gap=0.01,
    counts={"admitted": 3},
    reasons={"admitted": 3},
    resources=(api.ResourceView(id="cell0/ul", kind="comm", planned=0.5, background=0.1, price=0.25),),
    submit_ms=api.Quantiles(n=3, p50=1.0, p99=2.0, max=3.0),
    solve_ms=api.Quantiles(),
    telemetry_ms=api.Quantiles(),
    ingest=api.IngestView(
        messages=9, reports=9, refused=(api.Counted(source="gnb", reason="dl_cqi outside 0..15", n=2),)
    ),
    shadow=api.ShadowView(
        baseline="pf-admit", window_s=600.0, offered=10, live=api.ShadowTally(met=6), shadow=api.ShadowTally(met=4)
    ),
)


def refuse(code: str, message: str, hint: str = "") -> Handler:
    """Return a handler that refuses."""

    def handler(_: api.Args) -> object:
        raise PeerRefusal(api.Fault(code=code, message=message, hint=hint))

    return handler


class PeerRefusal(Exception):
    """What a handler raises to answer with a fault."""


class Peer:
    """Answers on a thread until it is stopped; keeps the requests that it read."""

    def __init__(self, folder: Path) -> None:
        self.control, self.decisions = ControlSocket(), DecisionSocket()
        self.control.bind([f"ipc://{folder}/control.sock"])
        self.decisions.bind([f"ipc://{folder}/decisions.sock"])
        self.endpoint = self.control.endpoints[0]
        self.handlers: dict[str, Handler] = {"watch": lambda _: api.Watching(endpoints=tuple(self.decisions.endpoints))}
        self.seen: list[tuple[str, api.Args]] = []
        self.current: dict[str, list[api.Lease]] = {}  # task -> what a new subscriber is sent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.control.wait(0.01)
            for asked in self.control.drain():
                self.control.answer(asked.route, self._answer(asked.payload))
            for topic in self.decisions.subscribed()[0]:
                for task, leases in self.current.items():
                    if f"{api.DECISION_TOPIC}{task}".encode().startswith(topic):
                        for lease in leases:
                            self.decisions.send(f"{api.DECISION_TOPIC}{task}".encode(), msgspec.json.encode(lease))
        self.control.close()
        self.decisions.close()

    def _answer(self, payload: bytes) -> bytes:
        request = msgspec.msgpack.decode(payload, type=api.Request)
        args = msgspec.msgpack.decode(request.args, type=api.VERBS[request.verb].args)
        self.seen.append((request.verb, args))
        try:
            result = msgspec.Raw(msgspec.msgpack.encode(self.handlers[request.verb](args)))
        except PeerRefusal as refusal:
            return msgspec.msgpack.encode(api.Response(v=1, id=request.id, ok=False, error=refusal.args[0]))
        return msgspec.msgpack.encode(api.Response(v=1, id=request.id, ok=True, result=result))


@contextmanager
def peer(folder: Path) -> Iterator[Peer]:
    """Run a peer whose sockets lie in `folder`."""
    made = Peer(folder)
    made._thread.start()
    try:
        yield made
    finally:
        made._stop.set()
        made._thread.join()
