"""How messages reach a life of the daemon: dropped, delayed, doubled, reordered, corrupted, or as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sim_life import NS
from sim_messages import corrupted, frame, request
from sim_script import Step

from cosched.api.messages import Request, SubmitArgs
from cosched.core.reasons import Reason
from telemetry.bus import BusRequest, Frame
from telemetry.messages import (
    Message,
)

if TYPE_CHECKING:
    from sim_world import World

N_UES = 8


def bus(world: World, step: Step, message: Message) -> None:
    """Send a telemetry message; the network may do something to it."""
    topic, payload = frame(message, as_json=step.a < 0.3)
    frames = [Frame(topic, payload, "")]
    if step.fate:
        world.faults[f"message {step.fate}"] += 1
    if step.fate == "drop":
        return
    if step.fate == "corrupt":
        frames = [Frame(topic, corrupted(payload, step.b, step.c), "")]
    if step.fate == "double":
        frames *= 2
    if step.fate in {"delay", "swap"}:
        world.at(step.b * (2.0 if step.fate == "delay" else 0.02), "late", lambda: arrive(world, frames))
        return
    arrive(world, frames)


def arrive(world: World, frames: list[Frame]) -> None:
    life = world.life
    before = dict(life.engine.reported_s)
    ends = [offer for offer, reason in life.engine._ends if reason == Reason.STALE]  # for whom a report comes too late
    world.witness.stale &= {offer.task for offer in ends}
    world.witness.stale |= {offer.task for offer in ends if world.witness.is_stale(offer.ue)}
    life.bus.frames += frames
    while life.ingest.drain():
        pass
    world.awake |= {
        ue: 0.0 for ue, at in life.engine.reported_s.items() if before.get(ue) != at or at == world.now_ns * NS
    }


def ask(world: World, step: Step, payload: bytes) -> None:
    """Send a request to the control socket."""
    payloads = [payload]
    if step.fate:
        world.faults[f"request {step.fate}"] += 1
    if step.fate == "drop":
        return
    if step.fate == "corrupt":
        payloads = [corrupted(payload, step.b, step.c)]
    if step.fate == "double":
        payloads *= 2
    if step.fate in {"delay", "swap"}:
        world.at(step.b, "late", lambda: requested(world, payloads))
        return
    requested(world, payloads)


def requested(world: World, payloads: list[bytes]) -> None:
    life = world.life
    for payload in payloads:
        route = str(world.number()).encode()
        world.witness.requests(route, submitted(payload))
        life.control.queue(BusRequest((route,), payload, ""), world.now_ns * NS)
    while life.control.work(world.now_ns * NS):
        pass


def submitted(payload: bytes) -> str:
    """Task that a request submits, "" for any other."""
    codec = msgspec.json if payload[:1] == b"{" else msgspec.msgpack
    try:
        found = codec.decode(payload, type=Request)
        return codec.decode(found.args, type=SubmitArgs).task if found.verb == "submit" else ""
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, TypeError):
        return ""


def verb(world: World, step: Step, name: str, args: dict[str, Any] | None = None) -> None:
    ask(world, step, request(name, str(world.number()), args, as_json=step.a < 0.5))
