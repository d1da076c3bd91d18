"""What the process of the UEs is told, and what it says: JSON objects, one a line."""

from __future__ import annotations

import msgspec

from cosched.demo.stage import UeChannel


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Where things are, and each UE's channel."""

    folder: str
    checkpoint: str
    control: str
    telemetry: str
    tokens: int
    channels: dict[str, UeChannel]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The checkpoint is written. A line on stdin begins the sessions."""

    weight_bytes: int


class Token(msgspec.Struct, frozen=True, kw_only=True, tag="token"):
    """One token more. Times are measured; tpot_s is the mean, moves included."""

    ue: str
    token: int
    ttft_s: float
    tpot_s: float | None


class UeMoved(msgspec.Struct, frozen=True, kw_only=True, tag="moved"):
    """A session went to another operating point, or could not (`how` says why)."""

    ue: str
    tokens: int
    point: str
    how: str


class UeEnded(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """A session is over; `why` it ended early, "" where it did not."""

    ue: str
    tokens: int
    why: str


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag="checked"):
    """How many of its tokens, from the first, the whole model has too: with activations rounded alike, and with none.

    tpot_s: mean seconds a token, moves left out.
    """

    ue: str
    equal: int
    unrounded: int
    tpot_s: float


Said = Ready | Token | UeMoved | UeEnded | Checked
