"""What peers send: telemetry, requests, and garbage of both, as bytes."""

from __future__ import annotations

from typing import Any

import msgspec
from sim_script import pick

from telemetry import wire
from telemetry.messages import Message

MODELS = ("llama-3-8b", "llama-3-8b", "llama-3-8b", "no-such-model")
ABSURD: tuple[dict[str, Any], ...] = (
    {"kind": "llm", "context_tokens": 2**40},
    {"kind": "llm", "new_tokens": 0},
    {"kind": "llm", "new_tokens": 2**40, "ttft_s": 1e18},
    {"kind": "llm", "max_output_tokens": 0},
    {"kind": "llm", "max_output_tokens": 2**40, "tpot_s": 1e-9},
    {"kind": "llm", "ttft_s": 1e-9},
    {"kind": "llm", "tpot_s": 1e18},
    {"kind": "llm", "tpot_s": float("inf")},
    {"kind": "video", "fps": 1e18},
    {"kind": "video", "fps": 1e-9},
    {"kind": "video", "frames": 0},
    {"kind": "video", "frames": 2**40},
    {"kind": "video", "frame_flop": 1e18, "deadline_s": 1e18},
    {"kind": "video", "frame_bits": 0.0, "frame_flop": 0.0},
    {"kind": "video", "frame_bits": 1e15, "deadline_s": 1e-9},
    {"kind": "video", "deadline_s": float("nan")},
)


def work(a: float, b: float, c: float) -> dict[str, Any]:
    """What a task asks for: mostly short sessions, so that many begin and end."""
    if a < 0.35:
        return {
            "kind": "video", "frame_flop": 1e10 + 9e10 * b, "frame_bits": 1e5 + 9e5 * c, "fps": 2.0 + 6 * b,
            "deadline_s": 0.1 + 0.5 * c, "frames": 5 + int(30 * a), "private": b < 0.3,
        }  # fmt: skip
    return {
        "kind": "llm", "model": MODELS[pick(b, 64) % 4 if b < 0.1 else 0], "context_tokens": int(2000 * b * b),
        "new_tokens": 16 + int(200 * c), "max_output_tokens": 4 + int(60 * b), "ttft_s": 0.3 + 2.5 * c,
        "tpot_s": 0.05 + 0.3 * b, "private": c < 0.4,
    }  # fmt: skip


def absurd(a: float, b: float, c: float) -> dict[str, Any]:
    found = ABSURD[pick(a, len(ABSURD))]
    usual = work(0.1 if found["kind"] == "video" else 0.9, 0.1 + 0.9 * b, c)
    return usual | found


def request(verb: str, number: str, args: dict[str, Any] | None, *, as_json: bool) -> bytes:
    body: dict[str, Any] = {"v": 1, "id": number, "verb": verb}
    if args is not None:
        body["args"] = args
    return (msgspec.json if as_json else msgspec.msgpack).encode(body)


def frame(message: Message, *, as_json: bool) -> tuple[bytes, bytes]:
    return wire.encode(message, as_json=as_json)


def corrupted(data: bytes, a: float, b: float) -> bytes:
    """Flip a byte, cut the end off, or repeat the beginning."""
    if not data:
        return b"\x81"
    at = pick(a, len(data))
    if b < 0.6:
        return data[:at] + bytes([data[at] ^ (1 + pick(b / 0.6, 255))]) + data[at + 1 :]
    return data[:at] if b < 0.8 else data + data[: at + 1]


def garbage(a: float, b: float, c: float) -> bytes:
    """Nothing that any peer of ours would send."""
    kinds = (
        b"", b"{", b"[]", b"\xff" * 8, b"\x00", b'{"v":1,"verb":null}', b'{"v":1,"verb":"submit","args":{"task":1}}',
        b'{"v":2,"verb":"list"}', b'{"v":1,"verb":"no-such-verb"}', b"{" + b'"a":{' * 2000, b"\x91" * 3000,
        b'{"v":1,"verb":"show","id":1e400,"args":{"task":"\\ud800"}}', b'{"v":1,"verb":"release","args":{"task":""}}',
        b'{"v":1,"verb":"list","args":{"limit":-5}}', b'{"v":1,"verb":"list","args":{"limit":99999999999999999999}}',
        b'{"v":1,"verb":"policy","args":{"policy":"no-such-policy"}}', b'{"v":1,"verb":"explain","args":{"task":"x"}}',
        b'{"v":1,"verb":"whatif","args":{"more_prbs":{"cell0":-100000}}}',
        b'{"v":1,"verb":"whatif","args":{"copies":0}}',
    )  # fmt: skip
    chosen = kinds[pick(a, len(kinds))]
    return corrupted(chosen, b, c) if c < 0.3 else chosen
