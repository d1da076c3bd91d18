"""What suite `network` and its UE tell each other."""

from __future__ import annotations

from typing import Final

import msgspec

MODEL: Final = "small"
SEED: Final = 3
VOCAB: Final = 512


class UeSetup(msgspec.Struct, frozen=True):
    """What the UE begins with."""

    config: str
    key: str
    endpoint: str  # of the host
    server_key: str
    control: str
    telemetry: str


class Job(msgspec.Struct, frozen=True, tag="run", tag_field="do"):
    """A generation at a given operating point."""

    task: str
    split: int
    bits: int
    prompt_tokens: int
    tokens: int


class JobAsked(msgspec.Struct, frozen=True, tag="ask", tag_field="do"):
    """A generation that the daemon is asked for."""

    task: str
    ue: str
    prompt_tokens: int
    tokens: int
    ttft_s: float
    tpot_s: float


class Leased(msgspec.Struct, frozen=True):
    """The daemon's answer."""

    reason: str
    point: str
    bandwidth_hz: float
    predicted_s: tuple[float | None, ...]


class Measured(msgspec.Struct, frozen=True):
    """How long it took; bytes that left the UE."""

    ttft_s: float
    tpot_s: float
    sent_bytes: int
    device_prefill_s: float | None = None
    device_token_s: float | None = None
    node_prefill_s: float | None = None
    node_token_s: float | None = None


def prompt(tokens: int) -> list[int]:
    """Return some token ids."""
    return [(31 * i * i + 7 * i + 3) % VOCAB for i in range(tokens)]
