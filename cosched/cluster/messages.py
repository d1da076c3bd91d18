"""What travels between daemon, dispatcher and node actors. MessagePack; unknown keys are accepted everywhere.

daemon -> dispatcher (its stdin): Begin, then Update, one per plan. dispatcher -> daemon (its stdout): `News`.
dispatcher -> node actor: Order, at most one per plan, answered with Ack or Refusal; then it is asked for its Report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, NamedTuple

import msgspec

from cosched.api.messages import ClusterNode
from cosched.errors import BadInput

VERSION: Final = 1  # of what node actors take: daemon and nodes may be updated one after the other
OLD_EPOCH: Final = "old_epoch"  # codes of a Refusal
OLD_GENERATION: Final = "old_generation"
OTHER_VERSION: Final = "other_version"
MALFORMED: Final = "malformed"

Amount = Annotated[float, msgspec.Meta(ge=0, le=1e18)]  # bytes, weights, shares: neither negative nor infinite nor NaN
Priority = Annotated[int, msgspec.Meta(ge=-128, le=127)]
LayerNo = Annotated[int, msgspec.Meta(ge=0, le=4_096)]


class Session(msgspec.Struct, frozen=True, array_like=True):
    """One task on a node. `weight`: of the work-conserving sharing of the node (Plan.node_weight)."""

    task: str
    point: str  # id of the operating point
    split: int  # layers that the device keeps
    precision_bits: int
    weight: Amount
    share: Amount  # of the node, as planned
    pace_s: Amount = 0.0  # seconds a token that the plan counts on, 0 where nothing is decoded
    priority: Priority = 0  # who has more goes into a step first: 1 where the plan promises, 0 at best effort


class LayersOrder(msgspec.Struct, frozen=True, array_like=True):
    """Decoder layers [first, last) of a model; `weight_bytes` is what they weigh, each alike."""

    model: str
    first: LayerNo
    last: LayerNo
    weight_bytes: Amount = 0.0


Layer = tuple[str, int]  # one of a model


def single(layers: Iterable[LayersOrder]) -> dict[Layer, float]:
    """Each layer of these with its bytes."""
    return {
        (one.model, k): one.weight_bytes / (one.last - one.first) for one in layers for k in range(one.first, one.last)
    }


def runs(layers: Mapping[Layer, float]) -> tuple[LayersOrder, ...]:
    """Layers with their bytes as ranges, as few as there can be; sorted."""
    found: list[LayersOrder] = []
    for (model, k), size in sorted(layers.items()):
        if found and (found[-1].model, found[-1].last) == (model, k):
            found[-1] = LayersOrder(model, found[-1].first, k + 1, found[-1].weight_bytes + size)
        else:
            found.append(LayersOrder(model, k, k + 1, size))
    return tuple(found)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """All changes of one plan for one node. `whole`: what is not named here is not to be held any more.

    Sessions change at once. Layers take their time, come before others go where room_bytes (0: not said) has them both,
    and go when no session runs on them.
    """

    v: int = VERSION
    epoch: int  # of the daemon: each start takes a larger one
    generation: int  # of the plan
    who: str  # the daemon, for people
    whole: bool = False
    hold: tuple[Session, ...] = ()  # new or changed
    end: tuple[str, ...] = ()
    load: tuple[LayersOrder, ...] = ()
    unload: tuple[LayersOrder, ...] = ()
    room_bytes: Amount = 0.0  # for weights
    step_s: Amount = 0.0  # planned length of a step; 0: nobody decodes


_order = msgspec.msgpack.Decoder(Order)


def order_of(data: bytes) -> Order:
    """Decode an Order. Raises BadInput: it is none, or has amounts or layers that cannot be."""
    try:
        order = _order.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(f"an order that cannot be read: {error}") from None
    except RecursionError:
        raise BadInput("an order that cannot be read: nested too deeply") from None
    for layers in (*order.load, *order.unload):
        if layers.first >= layers.last:
            raise BadInput(f"an order for layers [{layers.first}, {layers.last}) of '{layers.model}', which are none")
    return order


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag="ack"):
    """The order is taken; what came of it is in the next reports."""

    generation: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """Nothing was changed. `epoch`, `generation` and `who`: of the latest order that was taken."""

    reason: str
    epoch: int
    generation: int
    who: str


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """What is in force on a node, as its executor says, not as it was told."""

    v: int = VERSION
    generation: int  # of the latest order that was carried out, 0 = none
    sessions: dict[str, float]  # task -> weight in force
    layers: tuple[LayersOrder, ...] = ()
    loading: bool = False  # layers are on their way, or wait
    waits: str = ""  # what they wait for
    load_bytes_per_s: float = 0.0  # at which layers were loaded: median of the latest, 0 = none was
    used_bytes: float = 0.0
    endpoint: str = ""  # where clients send activations, "" = nowhere
    public_key: str = ""  # CURVE key of that endpoint, "" = a plain connection
    device: str = ""  # that the executor computes on, with its memory; "" and 0: it does not say
    memory_bytes: float = 0.0
    free_bytes: float = 0.0
    failed: str = ""  # why the latest order was not carried out
    orders: int = 0  # taken by this process
    refused: int = 0  # orders and questions of older daemons
    refused_who: str = ""  # the latest of them
    pid: int = 0
    executor: str = ""


Answer = Ack | Refusal | Report


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who commands the cluster's nodes."""

    epoch: int
    who: str = ""
    daemon: str = ""  # id of the daemon's state: a restart is the same daemon
    since_unix_s: float = 0.0


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the site."""

    id: str
    fraction: float  # of its GPU, where it has one
    layers: tuple[LayersOrder, ...] = ()  # that it is to have loaded
    room_bytes: float = 0.0  # for weights, 0 = not said


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin"):
    """First message to a dispatcher."""

    mode: str  # local, join
    address: str
    token_file: str
    executor: str
    nodes: tuple[NodeSpec, ...]
    who: str
    daemon: str
    epoch: int  # taken earlier in this life of the daemon, 0 = none
    least: int  # the new epoch is above this
    period_s: float
    unapplied_periods: int
    retries: int
    silent_s: float
    processes: str  # file of the local cluster's processes


class Assigned(msgspec.Struct, frozen=True, array_like=True):
    """Where a task is and in which form; node: index into Begin.nodes, -1 = on none."""

    task: str
    node: int
    point: str
    split: int
    precision_bits: int


class Update(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    """One plan. weight, share, pace: float64 of each task. `assigned`: those that are new or moved since the last one.

    promised: a byte of each task, 1 where the plan holds its deadlines. step_s: float64 of each of Begin.nodes, 0 where
    nobody decodes. `nodes`: Begin.nodes with what they are to hold from here on, None = as before.
    """

    generation: int
    tasks: tuple[str, ...]
    weight: bytes
    share: bytes
    pace: bytes
    promised: bytes
    step_s: bytes
    assigned: tuple[Assigned, ...]
    nodes: tuple[NodeSpec, ...] | None = None


class Taken(msgspec.Struct, frozen=True, kw_only=True, tag="taken"):
    """The dispatcher is ready for the next Update."""

    generation: int


class Connected(msgspec.Struct, frozen=True, kw_only=True, tag="connected"):
    """In command of the cluster at `address`; `took_over`: from whom, "" = from nobody."""

    epoch: int
    address: str
    took_over: str = ""


class Fenced(msgspec.Struct, frozen=True, kw_only=True, tag="fenced"):
    """A daemon with a larger epoch has taken over; nothing is sent from here on."""

    epoch: int
    who: str


class Contested(msgspec.Struct, frozen=True, kw_only=True, tag="contested"):
    """An older daemon was refused by a node."""

    node: str
    who: str


class NodeNews(ClusterNode, frozen=True, kw_only=True, tag="node"):
    """A node of the site as the dispatcher sees it. States: `NODE_STATES`."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """There is no cluster to work on; the dispatcher ends, and is started again later."""

    why: str


News = Taken | Connected | Failed | Fenced | Contested | NodeNews

STARTING: Final = "starting"
UP: Final = "up"
ABSENT: Final = "absent"
LOST: Final = "lost"
DRAINED: Final = "drained"
NODE_STATES: Final[dict[str, str]] = {
    STARTING: "its actor is being started for the first time",
    UP: "its actor answers",
    ABSENT: "no Ray node carries its label",
    LOST: "its actor or its Ray node has died or does not answer; it is started anew where its Ray node lives",
    DRAINED: "it acknowledged changes and did not apply them, after all retries",
}


class ReportOutcome(NamedTuple):
    """What a report says about what was asked."""

    retry: bool = False  # send everything again
    unfit: bool = False  # retries are used up
    why: str = ""
