"""What a host is asked and what it answers: MessagePack in the first frame, tensors as raw frames behind it.

Every request has a number that its answer brings back. A step says at which position it begins, and a host whose
cache is not exactly there refuses it: a message that was lost or came twice can damage nothing. Whatever is decoded
here comes from outside: lengths and nesting are bounded before anything is kept, and all that is wrong is a BadFrame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from cosched.runtime.errors import BadFrame
from cosched.runtime.sampling import Sampling

VERSION: Final = 1
HEAD_BYTES: Final = 1 << 16  # of a message's first frame; an answer's report names every session and layer
MOST_FRAMES: Final = 1_025  # of a message: its head, and a tensor a layer
TEXT: Final = 2_000  # characters of a message for people

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Grant = Annotated[str, msgspec.Meta(max_length=64)]  # a session's, at least LEAST_GRANT characters; "": none
Key = Annotated[str, msgspec.Meta(max_length=40)]
LEAST_GRANT: Final = 16


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Base: told apart by `type`."""


class Onward(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The host that goes on where this one's layers end, in bits of `precision`; its session is open already."""

    endpoint: Name
    session: Name
    precision_bits: Annotated[int, msgspec.Meta(ge=1, le=32)]
    server_key: Key = ""  # its CURVE public key
    grant: Grant = ""  # of that session: what lets this host run its steps


class Open(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Begin a session on layers [start, stop) with an empty cache."""

    session: Name
    task: Name  # whose weight in the sharing of the node it goes by
    model: Name
    fingerprint: Annotated[str, msgspec.Meta(max_length=64)]
    start: Count
    stop: Count
    grant: Grant = ""  # who shows it may run steps and export, though the session is not his
    onward: Onward | None = None  # None: `stop` is the model's end, and tokens are chosen here
    sampling: Sampling = Sampling()


class Close(Message, frozen=True, kw_only=True, omit_defaults=True):
    """End a session."""

    session: Name


class Step(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Run `tokens` further tokens from `position` on.

    Frame 1: their token ids (int32, little endian) where the session begins with layer 0, else an activation.
    """

    session: Name
    position: Count
    tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    choose: bool = False  # the answer brings the next token
    logits: bool = False  # and the last token's logits as a frame, fp32
    grant: Grant = ""


class Export(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Return the KV cache of layers [start, stop), a frame for each."""

    session: Name
    start: Count
    stop: Count
    grant: Grant = ""


class Import(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Put in the KV cache of layers [start, stop), a frame for each."""

    session: Name
    start: Count
    stop: Count


class Pull(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Fetch the KV cache of layers [start, stop) from another host's session, or from one here (endpoint "")."""

    session: Name
    start: Count
    stop: Count
    source: Name
    endpoint: Annotated[str, msgspec.Meta(max_length=128)] = ""
    server_key: Key = ""
    grant: Grant = ""  # of the source


class Look(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for a `HostReport`."""


Body = Open | Close | Step | Export | Import | Pull | Look


class HostRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Frame 0 of a request."""

    id: Number
    body: Body
    v: int = VERSION


class ModelHeld(msgspec.Struct, frozen=True, kw_only=True):
    """One model at a host."""

    fingerprint: str
    layers: tuple[int, ...]
    weight_bytes: int


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a host holds and has done since its start."""

    name: str
    models: dict[str, ModelHeld]
    sessions: dict[str, int]  # session -> tokens in its cache
    kv_bytes: int
    steps: int
    tokens: int
    busy_s: float  # in execution
    refused: int
    load_s_per_layer: float  # mean; 0: nothing was loaded
    refused_by: dict[str, dict[str, int]] = {}  # identity -> reason -> requests
    failed: int = 0  # of those refused: by a defect of ours, answered `internal`
    expired: int = 0  # sessions closed because nobody used them
    evicted: int = 0  # sessions closed to make room for somebody who had less
    unsent: int = 0  # answers that their client did not take
    waiting: int = 0  # requests that wait for their turn


class HostAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Frame 0 of an answer. `error` "" is success; it is a code for programs, `message` for people."""

    id: Number
    error: Annotated[str, msgspec.Meta(max_length=128)] = ""
    message: Annotated[str, msgspec.Meta(max_length=TEXT)] = ""
    token: int = -1  # the token chosen; -1: none was asked for
    node_s: float = 0.0  # in execution, over all hosts passed; waiting is left out
    report: HostReport | None = None


_requests = msgspec.msgpack.Decoder(HostRequest)
_answers = msgspec.msgpack.Decoder(HostAnswer)

Head = TypeVar("Head", HostRequest, HostAnswer)


def request_of(frames: Sequence[bytes]) -> HostRequest:
    """Decode a request's first frame. Raises BadFrame."""
    request = _head(_requests, frames, "a request", HEAD_BYTES)
    if request.v != VERSION:
        raise BadFrame(f"protocol version {request.v}: this host speaks {VERSION}")
    return request


def answer_of(frames: Sequence[bytes]) -> HostAnswer:
    """Decode an answer's first frame. Raises BadFrame."""
    return _head(_answers, frames, "an answer", 16 * HEAD_BYTES)


def _head(decoder: msgspec.msgpack.Decoder[Head], frames: Sequence[bytes], what: str, most: int) -> Head:
    head = frames[0] if frames else b""
    if len(head) > most or len(frames) > MOST_FRAMES:
        raise BadFrame(f"not {what}: {len(head)} bytes and {len(frames)} frames, more than there can be")
    try:
        return decoder.decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadFrame(f"not {what}: {error}"[:TEXT]) from None
    except RecursionError:
        raise BadFrame(f"not {what}: nested too deeply") from None


def frames_of(head: HostRequest | HostAnswer, tensors: Sequence[bytes] = ()) -> list[bytes]:
    """Put a message together."""
    return [msgspec.msgpack.encode(head), *tensors]
