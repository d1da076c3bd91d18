"""A core's state as plain data: what a restart, a reload, a what-if and the head of a capture begin with.

A core that takes a snapshot over decides from there on like the one that it was taken of, bit for bit: floats survive
JSON. Between its taking and its taking over, cells and nodes may have changed: they are named, not numbered.
"""

from __future__ import annotations

import msgspec

from cosched.core.channel import ChannelRow
from cosched.core.events import Progress
from cosched.core.layers import NodeLayers
from cosched.profiles.calibration import CalibrationRow, Factors
from telemetry.messages import TaskOffer


class TaskRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that holds a lease. Its operating point is named, so that another table may have it at another row."""

    offer: TaskOffer
    cell: str
    table_cell: str  # where it was offered: its operating points were worked out for that cell
    point: str
    progress: Progress | None = None
    factors: Factors = ()  # that its operating points were worked out with


class BidRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that asked to come in of late: bid prices are learned from these (cosched/core/bids.py)."""

    at_s: float
    offer: TaskOffer
    cell: str
    efficiency_bps_hz: float
    factors: Factors = ()


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one resource."""

    background: float = 0.0
    price: float = 0.0
    variance: float = 0.0
    use: float = 0.0
    bid: float = 0.0  # value of a second of it


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """State of a core that has no solve under way."""

    at_s: float
    generation: int = 0
    request: int = 0
    channel: tuple[ChannelRow, ...] = ()
    cell_of_ue: dict[str, str] = {}
    heard_s: dict[str, tuple[float, float]] = {}  # UE -> its first and its latest report, in the order of cell_of_ue
    ues_due: int = 0  # so many UEs are looked through for those to forget
    ues_forgotten: int = 0
    loads: dict[str, Load] = {}  # by resource id
    tasks: tuple[TaskRow, ...] = ()  # in order of admission
    bids: tuple[BidRow, ...] = ()  # in order of arrival
    bids_due_s: float = 0.0
    barred: tuple[str, ...] = ()  # nodes that no task may be on
    layers: tuple[NodeLayers, ...] = ()  # that nodes hold, as far as is known
    short_bytes: dict[str, float] = {}  # of memory that nodes lack of what the site says
    calibration: tuple[CalibrationRow, ...] = ()
