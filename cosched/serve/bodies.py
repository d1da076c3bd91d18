"""What OpenAI's clients send, decoded and bounded: bodies of chat and text completions.

Parameters that nobody here knows are passed over, as vLLM does; those that would change the answer, and are not done
here, are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, cast

import msgspec

from cosched.runtime.sampling import Sampling
from cosched.serve.faults import bad
from cosched.serve.settings import ServeLimits

STOP_CHARS: Final = 256
COMPLETION_TOKENS: Final = 16  # of a text completion that does not say, as OpenAI has it
TEMPERATURE: Final = 1.0  # as OpenAI has it
MOST_SEED: Final = 1 << 31
ROLES: Final = frozenset({"system", "developer", "user", "assistant"})

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Warmth = Annotated[float, msgspec.Meta(ge=0, le=2)]
Prompt = str | list[str | int | list[int]]  # text or tokens, or a list of one of these
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class ContentPart(msgspec.Struct, frozen=True):
    """A piece of a message."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: object = None


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream tells besides."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class AskBody(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of body have. `object` fields are not done here, or only at one value."""

    model: str
    max_tokens: Tokens | None = None
    temperature: Warmth | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=1 << 24)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    n: int | None = None
    best_of: int | None = None
    logprobs: object = None
    top_logprobs: object = None
    logit_bias: object = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None


class ChatBody(AskBody, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: Tokens | None = None
    tools: object = None
    tool_choice: object = None
    functions: object = None
    function_call: object = None
    response_format: object = None
    modalities: object = None
    audio: object = None


class TextBody(AskBody, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompt
    suffix: str | None = None
    echo: bool | None = None


_UNDONE: Final[Mapping[str, Callable[[Any], bool]]] = {  # what is done: a value of which this is True
    "n": lambda n: n == 1,
    "best_of": lambda n: n == 1,
    "logprobs": lambda wanted: wanted is False,
    "top_logprobs": lambda n: n == 0,
    "logit_bias": lambda bias: bias == {},
    "presence_penalty": lambda x: x == 0,
    "frequency_penalty": lambda x: x == 0,
    "repetition_penalty": lambda x: x == 1,
    "min_tokens": lambda n: n == 0,
    "tools": lambda tools: tools == [],
    "tool_choice": lambda choice: choice in ("none", "auto"),
    "functions": lambda tools: tools == [],
    "function_call": lambda choice: choice in ("none", "auto"),
    "response_format": lambda form: form == {"type": "text"},
    "modalities": lambda found: found == ["text"],
    "audio": lambda _: False,
    "suffix": lambda text: text == "",
    "echo": lambda wanted: wanted is False,
}

Body = TypeVar("Body", bound="ChatBody | TextBody")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One answer that is asked for. `prompt`: text of a completion, its tokens, or a conversation's turns."""

    model: str
    prompt: str | Sequence[int] | Sequence[Mapping[str, str]]
    is_chat: bool
    max_tokens: int
    says_length: bool  # the client did; else it is cut where the model's positions end
    sampling: Sampling
    stops: tuple[str, ...]
    stream: bool
    usage: StreamOptions
    ignore_eos: bool


def decoded(data: bytes, kind: type[Body]) -> Body:
    """Decode a body. Raises ServeFault 400."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = where.strip("`.").partition("[")[0] or None
        raise bad(f"{what}{f' - at {where.strip(chr(96))}' if where else ''}", param) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise bad(f"the body is no JSON object: {error}", code="invalid_json") from None


def wanted(body: ChatBody | TextBody, limits: ServeLimits, seed: int) -> Wanted:
    """Return what a body asks for. seed: where it names none. Raises ServeFault 400."""
    _refuse_undone(body)
    is_chat = isinstance(body, ChatBody)
    asked = (body.max_completion_tokens or body.max_tokens) if isinstance(body, ChatBody) else body.max_tokens
    default = limits.default_output_tokens if is_chat else COMPLETION_TOKENS
    if asked is not None and asked > limits.output_tokens:
        raise bad(f"max_tokens = {asked}: at most {limits.output_tokens} here", "max_tokens")
    return Wanted(
        model=body.model,
        prompt=_turns(body.messages, limits) if isinstance(body, ChatBody) else _prompt(body.prompt),
        is_chat=is_chat,
        max_tokens=asked or min(default, limits.output_tokens),
        says_length=asked is not None,
        sampling=_sampling(body, seed),
        stops=_stops(body.stop, limits),
        stream=bool(body.stream),
        usage=body.stream_options or StreamOptions(),
        ignore_eos=body.ignore_eos,
    )


def _refuse_undone(body: ChatBody | TextBody) -> None:
    for name, is_done in _UNDONE.items():
        value = getattr(body, name, None)
        if value is not None and not is_done(value):
            raise bad(f"'{name}' is not done here; leave it out", name, "unsupported_parameter")


def _sampling(body: AskBody, seed: int) -> Sampling:
    return Sampling(
        temperature=TEMPERATURE if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=(seed if body.seed is None else body.seed) % MOST_SEED,
    )


def _stops(stop: str | list[str] | None, limits: ServeLimits) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > limits.stops or any(not 0 < len(one) <= STOP_CHARS for one in stops):
        raise bad(f"at most {limits.stops} stop strings, of 1 to {STOP_CHARS} characters", "stop")
    return stops


def _turns(messages: list[ChatMessage], limits: ServeLimits) -> list[dict[str, str]]:
    if not 0 < len(messages) <= limits.messages:
        raise bad(f"a conversation has 1 to {limits.messages} messages", "messages")
    return [_turn(number, message) for number, message in enumerate(messages)]


def _turn(number: int, message: ChatMessage) -> dict[str, str]:
    where = f"messages[{number}]"
    if message.role not in ROLES or message.tool_calls:
        raise bad(
            f"{where}: role '{message.role[:32]}': one of {', '.join(sorted(ROLES))}; tools are not done here", where
        )
    parts = message.content if isinstance(message.content, list) else [ContentPart("text", message.content or "")]
    if other := next((part.type for part in parts if part.type != "text"), None):
        raise bad(f"{where}: content of type '{other[:32]}': text alone", where, "unsupported_parameter")
    return {"role": message.role, "content": "".join(part.text for part in parts)}


def _prompt(prompt: Prompt) -> str | list[int]:
    """Return the one prompt."""
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = cast("Prompt", prompt[0])
    if not prompt:
        raise bad("the prompt is empty", "prompt")
    if isinstance(prompt, str):
        return prompt
    tokens = [token for token in prompt if isinstance(token, int)]
    if len(tokens) != len(prompt):
        raise bad("one prompt a request", "prompt", "unsupported_parameter")
    return tokens
