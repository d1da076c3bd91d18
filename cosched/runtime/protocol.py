"""What a host is asked and what it answers: MessagePack in the first frame, tensors as raw frames behind it.

Every request has a number that its answer brings back. A step says at which position it begins, and a host whose
cache is not exactly there refuses it: a message that was lost or came twice can damage nothing.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from cosched.runtime.errors import BadFrame
from cosched.runtime.sampling import Sampling

VERSION: Final = 1

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Base: told apart by `type`."""


class Onward(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The host that goes on where this one's layers end, in bits of `precision`; its session is open already."""

    endpoint: Name
    session: Name
    precision_bits: int
    server_key: str = ""  # its CURVE public key


class Open(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Begin a session on layers [start, stop) with an empty cache."""

    session: Name
    task: Name  # whose weight in the sharing of the node it goes by
    model: Name
    fingerprint: str
    start: Count
    stop: Count
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


class Export(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Return the KV cache of layers [start, stop), a frame for each."""

    session: Name
    start: Count
    stop: Count


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
    endpoint: str = ""
    server_key: str = ""


class Look(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for a `HostReport`."""


Body = Open | Close | Step | Export | Import | Pull | Look


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Frame 0 of a request."""

    id: int
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


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Frame 0 of an answer. `error` "" is success; it is a code for programs, `message` for people."""

    id: int
    error: str = ""
    message: str = ""
    token: int = -1  # the token chosen; -1: none was asked for
    node_s: float = 0.0  # in execution, over all hosts passed; waiting is left out
    report: HostReport | None = None


_requests = msgspec.msgpack.Decoder(Request)
_answers = msgspec.msgpack.Decoder(Answer)


def request_of(frames: list[bytes]) -> Request:
    """Decode a request's first frame. Raises BadFrame."""
    try:
        request = _requests.decode(frames[0] if frames else b"")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFrame(f"not a request: {error}") from None
    if request.v != VERSION:
        raise BadFrame(f"protocol version {request.v}: this host speaks {VERSION}")
    return request


def answer_of(frames: list[bytes]) -> Answer:
    """Decode an answer's first frame. Raises BadFrame."""
    try:
        return _answers.decode(frames[0] if frames else b"")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFrame(f"not an answer: {error}") from None


def frames_of(head: Request | Answer, tensors: tuple[bytes, ...] | list[bytes] = ()) -> list[bytes]:
    """Put a message together."""
    return [msgspec.msgpack.encode(head), *tensors]
