"""What a device can do, and what a serving framework adds: numbers read from TOML, each with its source.

Files: config/devices/<key>.toml, config/hosts/<key>.toml. They use the units of data sheets (TFLOPS, GB/s,
microseconds); the structures here are SI.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from cosched.errors import BadInput
from cosched.resources import config_file

Positive = Annotated[float, msgspec.Meta(gt=0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Efficiency = Annotated[float, msgspec.Meta(gt=0, le=1)]
Kind = Literal["gpu", "llamacpp"]  # which equations hold: operator by operator, or weights read plus layer overhead

# What a profile can be a guess in; a group that no measurement stands behind is named in `guess`.
GROUPS: Final = ("prefill", "decode", "attention", "quantised", "link", "power", "radio")


class _Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a device file; `source` says where its numbers are from."""

    source: str


class _Peak(_Group, frozen=True, kw_only=True):
    tflops: Positive  # fp16 dense
    mem_bw_gb_s: Positive
    memory_gb: Positive  # 10^9 bytes


class _Linear(_Group, frozen=True, kw_only=True):
    compute_efficiency: Efficiency
    memory_efficiency: Efficiency
    overhead_us: NonNegative = 0.0  # of one GEMM (gpu), of one layer (llamacpp)


class _Elementwise(_Group, frozen=True, kw_only=True):
    efficiency: Efficiency
    overhead_us: NonNegative


class _Attention(_Group, frozen=True, kw_only=True):
    compute_efficiency: Efficiency
    kv_efficiency: Efficiency
    prefill_overhead_us: NonNegative = 0.0
    decode_overhead_us: NonNegative = 0.0


class _Link(_Group, frozen=True, kw_only=True):
    bandwidth_gb_s: Positive
    latency_us: NonNegative


class _PowerFile(_Group, frozen=True, kw_only=True):
    idle_w: NonNegative
    busy_w: Positive
    ul_tx_w: NonNegative = 0.0


class _DeviceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: Literal[1]
    name: str
    kind: Kind
    weight_format: Literal["gguf", "group128"]
    guess: tuple[str, ...]
    peak: _Peak
    linear: _Linear
    attention: _Attention
    power: _PowerFile
    elementwise: _Elementwise | None = None  # kind gpu
    link: _Link | None = None  # between ranks, where tensor parallelism is possible


class Power(msgspec.Struct, frozen=True):
    """Electrical power of the whole device without its radio, in watts."""

    idle: float
    busy: float


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device in SI units. Efficiencies are fractions of peak_flop_s or mem_bw_bytes_s.

    kind "gpu": operator by operator. kind "llamacpp": weights read plus `layer_overhead_s` (latency.py).
    `guess` names the groups (GROUPS) that no measurement stands behind; `sources` has the origin of each group.
    """

    key: str
    name: str
    kind: Kind
    weight_format: str
    guess: tuple[str, ...]
    sources: dict[str, str]
    peak_flop_s: float
    mem_bw_bytes_s: float
    memory_bytes: float
    compute_efficiency: float
    memory_efficiency: float
    gemm_overhead_s: float
    layer_overhead_s: float
    elementwise_efficiency: float
    elementwise_overhead_s: float
    attention_efficiency: float
    kv_efficiency: float
    attention_prefill_overhead_s: float
    attention_decode_overhead_s: float
    link_bytes_s: float | None
    link_latency_s: float
    power_w: Power
    ul_tx_power_w: float  # drawn by the radio while it sends

    def guesses(self, phase: Literal["prefill", "decode"], weight_bits: int = 16) -> tuple[str, ...]:
        """Return what in a time of this device has no measurement behind it, e.g. ("phone: prefill time",)."""
        groups = [phase, "attention"]
        if self.kind == "gpu" and weight_bits < 16:
            groups.append("quantised")
        words = {phase: f"{phase} time", "attention": "attention time", "quantised": f"{weight_bits}-bit kernels"}
        return tuple(f"{self.key}: {words[group]}" for group in groups if group in self.guess)


class _HostTerms(_Group, frozen=True, kw_only=True):
    layer_us: NonNegative
    sequence_ms: NonNegative
    prompt_token_us: NonNegative


class _HostMemory(_Group, frozen=True, kw_only=True):
    fraction: Efficiency
    of: Literal["card", "rest"]
    sequences: Literal["paged", "reserved"]


class _HostFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: Literal[1]
    name: str
    guess: tuple[str, ...] = ()  # terms without any measurement, in words
    measured_on: tuple[str, ...] = ()  # device keys
    terms: _HostTerms
    memory: _HostMemory | None = None


class KvMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What a server does with a card's memory (memory.py): how much it takes, and what a sequence holds of it.

    `of_rest`: `fraction` is of what weights and workspace leave, not of the whole card. `reserved`: a sequence holds
    its whole length from its start, so that none is ever evicted; else pages, as they fill.
    """

    fraction: float
    of_rest: bool
    reserved: bool


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What server and framework add to a step: a launch floor per layer, a term per sequence and per prompt token."""

    key: str
    name: str
    guess: tuple[str, ...]  # terms without any measurement, in words
    measured_on: tuple[str, ...]  # keys of the devices whose hosts were measured; elsewhere the terms are a guess
    source: str
    layer_s: float
    sequence_s: float
    prompt_token_s: float
    memory: KvMemory | None = None  # None: unknown, sequences never wait for memory

    def guesses(self, device: str) -> tuple[str, ...]:
        """Return what in a served time on `device` (a key) has no measurement behind it."""
        free = self.layer_s == self.sequence_s == self.prompt_token_s == 0
        return () if free or device in self.measured_on else (f"{device}: host terms of {self.name}",)


S = TypeVar("S", bound=msgspec.Struct)


def load_device(key_or_path: str | Path) -> Device:
    """Read config/devices/<key>.toml or a file of that form. Raises BadInput, naming file and key."""
    path = _find("devices", key_or_path)
    file = _read(path, _DeviceFile)
    _check_guess(file.guess, path)
    if file.kind == "gpu" and file.elementwise is None:
        raise BadInput(f"{path}: [elementwise] is missing: a device of kind gpu needs it")
    return _device(path.stem, file)


def load_host(key_or_path: str | Path) -> Host:
    """Read config/hosts/<key>.toml or a file of that form. Raises BadInput, naming file and key."""
    path = _find("hosts", key_or_path)
    file = _read(path, _HostFile)
    return Host(
        key=path.stem,
        name=file.name,
        guess=file.guess,
        measured_on=file.measured_on,
        source=file.terms.source,
        layer_s=file.terms.layer_us * 1e-6,
        sequence_s=file.terms.sequence_ms * 1e-3,
        prompt_token_s=file.terms.prompt_token_us * 1e-6,
        memory=None if file.memory is None else _kv_memory(file.memory),
    )


def _kv_memory(table: _HostMemory) -> KvMemory:
    return KvMemory(fraction=table.fraction, of_rest=table.of == "rest", reserved=table.sequences == "reserved")


def _device(key: str, file: _DeviceFile) -> Device:
    overhead_s = file.linear.overhead_us * 1e-6
    elementwise, link, gpu = file.elementwise, file.link, file.kind == "gpu"
    groups: dict[str, _Group | None] = {"peak": file.peak, "linear": file.linear, "elementwise": elementwise}
    groups |= {"attention": file.attention, "link": link, "power": file.power}
    return Device(
        key=key,
        name=file.name,
        kind=file.kind,
        weight_format=file.weight_format,
        guess=file.guess,
        sources={name: group.source for name, group in groups.items() if group is not None},
        peak_flop_s=file.peak.tflops * 1e12,
        mem_bw_bytes_s=file.peak.mem_bw_gb_s * 1e9,
        memory_bytes=file.peak.memory_gb * 1e9,
        compute_efficiency=file.linear.compute_efficiency,
        memory_efficiency=file.linear.memory_efficiency,
        gemm_overhead_s=overhead_s if gpu else 0.0,
        layer_overhead_s=0.0 if gpu else overhead_s,
        elementwise_efficiency=elementwise.efficiency if elementwise else file.linear.memory_efficiency,
        elementwise_overhead_s=elementwise.overhead_us * 1e-6 if elementwise else 0.0,
        attention_efficiency=file.attention.compute_efficiency,
        kv_efficiency=file.attention.kv_efficiency,
        attention_prefill_overhead_s=file.attention.prefill_overhead_us * 1e-6,
        attention_decode_overhead_s=file.attention.decode_overhead_us * 1e-6,
        link_bytes_s=link.bandwidth_gb_s * 1e9 if link else None,
        link_latency_s=link.latency_us * 1e-6 if link else 0.0,
        power_w=Power(idle=file.power.idle_w, busy=file.power.busy_w),
        ul_tx_power_w=file.power.ul_tx_w,
    )


def _find(group: str, key_or_path: str | Path) -> Path:
    path = Path(key_or_path)
    if isinstance(key_or_path, Path) or path.suffix == ".toml" or "/" in key_or_path:
        return path
    return config_file(group, f"{key_or_path}.toml")


def _read(path: Path, kind: type[S]) -> S:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        _refuse_not_finite(raw, path)
        return msgspec.convert(raw, kind)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise BadInput(f"{path}: {error}") from None


def _refuse_not_finite(table: dict[str, Any], path: Path) -> None:
    """Refuse inf and nan: TOML has them, and no comparison of msgspec refuses nan."""
    for key, value in table.items():
        if isinstance(value, dict):
            _refuse_not_finite(value, path)
        elif isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{path}: {key} = {value}: a finite number is needed")


def _check_guess(guess: tuple[str, ...], path: Path) -> None:
    for group in guess:
        if group not in GROUPS:
            raise BadInput(f"{path}: guess: '{group}' is no group of a profile; there are: {', '.join(GROUPS)}")
