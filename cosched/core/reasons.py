"""Reason codes of decisions and fates, each with the sentence that an operator reads."""

from __future__ import annotations

import enum
from typing import Final


class Reason(enum.StrEnum):
    """Why a task is served as it is, or is not; the value is what travels in decisions, JSON and traces."""

    ADMITTED = "admitted"
    UNPROMISED = "unpromised"
    MOVED = "moved"
    MOVED_NODE_LOST = "moved_node_lost"
    NODE_LOST = "node_lost"
    FENCED = "fenced"
    REJECTED_NO_CHANNEL = "rejected_no_channel"
    REJECTED_NO_POINT = "rejected_no_point"
    REJECTED_NOT_LOADED = "rejected_not_loaded"
    REJECTED_DEVICE_BUSY = "rejected_device_busy"
    REJECTED_NO_CAPACITY = "rejected_no_capacity"
    REJECTED_BID_PRICE = "rejected_bid_price"
    TTFT_MISSED = "ttft_missed"
    TPOT_MISSED = "tpot_missed"
    FRAMES_MISSED = "frames_missed"
    STALE = "stale"
    SILENT = "silent"
    FINISHED = "finished"
    RELEASED = "released"
    NOT_FINISHED = "not_finished"


_SENTENCES: Final[dict[str, str]] = {
    Reason.ADMITTED: "Admitted: the plan holds every deadline of the task.",
    Reason.UNPROMISED: "Served without a promise: this policy shares with everybody who asks.",
    Reason.MOVED: "Moved to another operating point that is better by more than the switch costs.",
    Reason.MOVED_NODE_LOST: "Moved: its node is gone, does not do what it is told, or has lost the layers.",
    Reason.NODE_LOST: "Ended: its node, or the layers that it ran on, are gone, and no other can hold its deadlines.",
    Reason.FENCED: "Ended: another daemon has taken over the nodes that it ran on.",
    Reason.REJECTED_NO_CHANNEL: "Rejected: no radio report of its user had come in, so nothing could be planned.",
    Reason.REJECTED_NO_POINT: "Rejected: no way to serve it holds its deadlines, even with cell and node to itself.",
    Reason.REJECTED_NOT_LOADED: "Rejected: no node has loaded the layers of its model that it would need.",
    Reason.REJECTED_DEVICE_BUSY: "Rejected: no way to serve it fits beside what the user's device does already.",
    Reason.REJECTED_NO_CAPACITY: "Rejected: too little is left of a cell or node that it needs.",
    Reason.REJECTED_BID_PRICE: "Rejected: the capacity is kept for tasks of more value that are expected soon.",
    Reason.TTFT_MISSED: "The first token came too late.",
    Reason.TPOT_MISSED: "Tokens after the first came more slowly than was asked for.",
    Reason.FRAMES_MISSED: "Too many video frames came after their deadline.",
    Reason.STALE: "Its telemetry was too old to plan with, and its lease ran out.",
    Reason.SILENT: "Ended: for too long nobody had reported it, submitted it again or released it.",
    Reason.FINISHED: "Finished: all its work is done.",
    Reason.RELEASED: "Released: its owner gave it up.",
    Reason.NOT_FINISHED: "Not finished when the trace ended.",
}


def describe(code: str) -> str:
    """Return the plain sentence of a reason code; a code that is not ours is named in the sentence, never hidden."""
    return _SENTENCES.get(code, f"Reason '{code}', which this version does not know.")
