"""One turn of an LLM session, split at layer k: k layers on the UE's device, the other L - k and the head on a node.

    k = 0        token ids go up (32 bits each); not for private sessions: raw tokens stay on their device
    0 < k < L    the hidden state goes up, in 16, 8 or 4 bits a value, at the measured cost in quality
    k = L        all layers and the head on the device: "local", nothing goes up

Phase 0 is the prefill of the turn's new tokens (deadline TTFT), phase 1 one decoded token (deadline TPOT). At full
shares a phase takes fixed_s + ul_bits / rate + node_s, and a token the step that it is in besides. A step of a node is
shared by all that decode there: `step_s` has what they share (weights, launches) and what this sequence adds to it; the
two add up to the step of a lone sequence as latency.served_step_s has it. How long steps are is decided with the rest
(solvers/steps.py). At k = 0 the node generates by itself: a token waits for no uplink and no round trip, they stream
down. Equations with symbols: docs/workloads.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from cosched.profiles import calibration, latency
from cosched.profiles.device import Device, Host
from cosched.site import Node
from cosched.workloads import checks
from cosched.workloads.base import LOCAL, Bools, Floats, Ints, PointTable, ServedModel, WorkloadContext, on_air
from cosched.workloads.pruning import prune
from telemetry.messages import LlmSession, TaskOffer

TOKEN_ID_BITS: Final = 32  # vocabularies have 17 or 18 bits; sent as int32
NO_QUANTISATION: Final = 1.0  # quality where no activation crosses the air


def points(offer: TaskOffer, context: WorkloadContext) -> PointTable:
    """Return the ways to serve an LlmSession that can hold its deadlines, dominated ones left out.

    Raises BadInput: unknown model, token counts or deadlines that are negative, zero or not numbers.
    """
    return prune(all_points(offer, context))


def all_points(offer: TaskOffer, context: WorkloadContext) -> PointTable:
    """Return every split, precision and node within privacy and the device's memory, whether in time or not."""
    session = _checked(offer, context)
    served = context.models[session.model]
    variants = _variants(session, served, context)
    sides = [_node_side(session, served, variants.splits, server) for server in _servers(served, context)]
    return _table(session, served, context, variants, sides)


@dataclass(frozen=True, slots=True)
class _Variants:
    """What is the same at every node: V networked pairs of split and precision, and whether k = L is possible."""

    splits: Ints  # (K,) each split once
    row: Ints  # (V,) index into `splits`
    precision_bits: Ints  # (V,)
    names: tuple[str, ...]  # (V,)
    local: bool


@dataclass(frozen=True, slots=True)
class _Server:
    """A node with its profiles; `factor`: measured over profiled time of prefill and decode."""

    node: Node
    device: Device
    host: Host
    factor: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _NodeSide:
    """One node's part, by split."""

    prefill_s: Floats  # (K,) elastic: seconds of the whole node
    step_s: Floats  # (K, 2) of a decode step: what all in it share, what this sequence adds
    round_trip_s: float  # propagation beyond the cell
    kv_bytes: Floats  # (K,)


def _checked(offer: TaskOffer, context: WorkloadContext) -> LlmSession:
    session = offer.work
    if not isinstance(session, LlmSession):
        raise checks.refuse(offer, "is no LLM session")
    if session.model not in context.models:
        raise checks.refuse(offer, f"unknown model '{session.model}'; the site has: {', '.join(context.models)}")
    checks.at_least(offer, "weight", offer.weight, 0)
    checks.at_least(offer, "context_tokens", session.context_tokens, 0)
    checks.at_least(offer, "new_tokens", session.new_tokens, 1)
    checks.at_least(offer, "max_output_tokens", session.max_output_tokens, 1)
    checks.positive(offer, "ttft_s", session.ttft_s)
    checks.positive(offer, "tpot_s", session.tpot_s)
    return session


def _variants(session: LlmSession, served: ServedModel, context: WorkloadContext) -> _Variants:
    n_layers = served.model.n_layers
    device_layers = layers_in_memory(session, served, context)
    local = device_layers == n_layers and _fits(session, served, context, n_layers, whole=True)
    greatest = min(device_layers, n_layers - 1)
    return _enumerate(1 if session.private else 0, greatest, served.ref.activation_bits, local)


@lru_cache(maxsize=256)
def _enumerate(least: int, greatest: int, precisions: tuple[int, ...], local: bool) -> _Variants:
    pairs = [(0, 0)] if least == 0 else []
    pairs += [(k, bits) for k in range(1, greatest + 1) for bits in precisions]
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return _Variants(
        splits=np.arange(least, greatest + 1),
        row=columns[:, 0] - least,
        precision_bits=columns[:, 1],
        names=tuple(f"k={k}/{bits}bit" if k else "k=0" for k, bits in pairs),
        local=local,
    )


def layers_in_memory(session: LlmSession, served: ServedModel, context: WorkloadContext) -> int:
    """Greatest k that the site allows the UE and whose weights, embedding and KV cache fit the device's memory."""
    most = served.model.n_layers if context.max_layers is None else min(context.max_layers, served.model.n_layers)
    if _fits(session, served, context, most, whole=False):
        return most
    fitting = [k for k in range(most) if _fits(session, served, context, k, whole=False)]
    return max(fitting, default=0)


def _fits(session: LlmSession, served: ServedModel, context: WorkloadContext, k: int, *, whole: bool) -> bool:
    """Whether k layers (`whole`: and the head) fit. What the operating system needs: the site's max_layers allows."""
    weights, kv = _device_bytes(session, served, context, k, whole=whole)
    return weights + kv <= context.device.memory_bytes


def _device_bytes(
    session: LlmSession, served: ServedModel, context: WorkloadContext, k: int, *, whole: bool
) -> tuple[float, float]:
    """Weights and KV cache of k layers (`whole`: and the head) on the device."""
    model, device, bits = served.model, context.device, served.ref.weight_bits
    everything = model.weight_bytes(bits, device.weight_format)
    layer = model.weight_bytes_layer(bits, device.weight_format)
    ends = everything - model.n_layers * layer  # embedding, head, last norm
    if not whole and not model.tied:
        ends -= model.head_weight_bytes(bits, device.weight_format)
    kv = model.kv_bytes_per_token_layer() * _greatest_context(session)
    return k * layer + (ends if k else 0.0), k * kv


def _greatest_context(session: LlmSession) -> int:
    return session.context_tokens + session.new_tokens + session.max_output_tokens


def _mean_context(session: LlmSession) -> float:
    """Tokens that the middle one of the output attends to: attention is linear in the context, so it is the mean."""
    return session.context_tokens + session.new_tokens + session.max_output_tokens / 2


def _node_side(session: LlmSession, served: ServedModel, splits: Ints, server: _Server) -> _NodeSide:
    node, embedded = server.node, splits == 0
    layers = (served.model.n_layers - splits).astype(np.float64)  # (K,) on the node
    prefill_s = _prefill_step(session, served, layers, embedded, server)
    return _NodeSide(
        prefill_s=prefill_s,
        step_s=np.stack(_decode_step(session, served, layers, embedded, server), axis=1),
        round_trip_s=2 * node.one_way_s,
        kv_bytes=layers * served.model.kv_bytes_per_token_layer() * _greatest_context(session),
    )


def _prefill_step(session: LlmSession, served: ServedModel, layers: Floats, embedded: Bools, server: _Server) -> Floats:
    """(K,) seconds of a whole node, host included, for the new tokens of one session."""
    model, device, bits, fraction = served.model, server.device, served.ref.weight_bits, server.node.fraction
    new, cached = float(session.new_tokens), float(session.context_tokens)
    gpu_s = layers * latency.prefill_layer_s(model, device, new, cached, bits, fraction=fraction)
    gpu_s += latency.head_s(model, device, bits, 1, fraction) + embedded * latency.embed_s(model, device, new, fraction)
    return server.factor[0] * latency.served_step_s(gpu_s, server.host, layers, prompt_tokens=new)


def _decode_step(
    session: LlmSession, served: ServedModel, layers: Floats, embedded: Bools, server: _Server
) -> tuple[Floats, Floats]:
    """Return a lone sequence's step in two parts (K,): what a batch shares, and what each of its sequences adds."""
    model, device, bits, fraction = served.model, server.device, served.ref.weight_bits, server.node.fraction
    head_shared_s = latency.head_s(model, device, bits, 0, fraction)
    own_s = layers * latency.decode_sequence_s(model, device, _mean_context(session), fraction)
    own_s += latency.head_s(model, device, bits, 1, fraction) - head_shared_s
    own_s += embedded * latency.embed_s(model, device, 1.0, fraction)
    shared_s = layers * latency.decode_weight_read_s(model, device, bits, fraction) + head_shared_s
    step_s = latency.served_step_s(shared_s + own_s, server.host, layers)  # the launch floor is shared, too
    own_s += server.host.sequence_s
    return server.factor[1] * (step_s - own_s), server.factor[1] * own_s


def _servers(served: ServedModel, context: WorkloadContext) -> list[_Server]:
    """Return the site's nodes, in order, with the corrections that measurements of this model gave."""
    owners = _owners(served, context)[1:]
    factors = [calibration.of_owner(context.factors, owner) for owner in owners]
    nodes = zip(context.site.nodes, context.node_devices, context.node_hosts, factors, strict=True)
    return [_Server(*node) for node in nodes]


def _owners(served: ServedModel, context: WorkloadContext) -> tuple[str, ...]:
    """Return whose times measurements correct: the kind of device, then each node."""
    return tuple(f"{key}/{served.ref.id}" for key in (context.device.key, *(n.id for n in context.site.nodes)))


def _device_side(session: LlmSession, served: ServedModel, context: WorkloadContext, splits: Ints) -> Floats:
    """(K, 2) seconds of the UE's device; the head where it has all layers."""
    model, bits, device = served.model, served.ref.weight_bits, context.device
    prefill_s = latency.prefill_layer_s(model, device, float(session.new_tokens), float(session.context_tokens), bits)
    decode_s = latency.decode_layer_s(model, device, _mean_context(session), bits)
    per_layer = np.array([prefill_s, decode_s])
    embed = np.array([latency.embed_s(model, device, n) for n in (float(session.new_tokens), 1.0)])
    head = latency.head_s(model, device, bits)
    k = splits[:, None]
    device_s: Floats = k * per_layer + (k > 0) * embed + (k == model.n_layers) * head
    device_s *= calibration.of_owner(context.factors, _owners(served, context)[0])
    return device_s


def _air_bits(served: ServedModel, precision_bits: Ints) -> Floats:
    """(V,) bits of one token on the uplink."""
    bits = {b: 8.0 * served.model.activation_bytes_per_token(b) for b in served.ref.activation_bits}
    return np.array([bits[b] if b else TOKEN_ID_BITS for b in precision_bits.tolist()], dtype=np.float64)


def _table(
    session: LlmSession, served: ServedModel, context: WorkloadContext, variants: _Variants, sides: list[_NodeSide]
) -> PointTable:
    """Networked rows, node after node, then the local one."""
    n_nodes, local = len(sides), [served.model.n_layers] * variants.local
    row, n_local = variants.row, len(local)
    split = np.concatenate([*[variants.splits[row]] * n_nodes, local]).astype(np.int64)
    precision = np.concatenate([*[variants.precision_bits] * n_nodes, [0] * n_local]).astype(np.int64)
    node = np.repeat([*range(n_nodes), LOCAL], [len(row)] * n_nodes + [n_local])
    device_s = _device_side(session, served, context, split)
    nothing = np.zeros((n_local, 2))
    away_s = np.repeat(
        [*(s.round_trip_s + 2 * context.cell_one_way_s for s in sides), 0.0], [len(row)] * n_nodes + [n_local]
    )
    asks = (split > 0).astype(np.float64)  # whether the node waits for the UE at every token
    air_bits = np.concatenate([*[_air_bits(served, variants.precision_bits)] * n_nodes, nothing[:, 0]])
    chunks = _chunks(session.new_tokens, context.site.transport.chunk_tokens)
    prefill_bits = on_air(context, air_bits * session.new_tokens, len(chunks))
    prefill_s = np.concatenate([*(s.prefill_s[row] for s in sides), nothing[:, 0]])
    step_s = np.concatenate([*(s.step_s[row] for s in sides), nothing])
    quality = [_quality(context, variants.precision_bits)] * n_nodes
    return PointTable(
        point_ids=_names(variants.names, tuple(n.id for n in context.site.nodes), variants.local),
        split=split,
        precision_bits=precision,
        node=node,
        quality=np.concatenate([*quality, [NO_QUANTISATION] * n_local]),
        fixed_s=device_s + np.stack([away_s, away_s * asks], axis=1),
        device_s=device_s,
        ul_bits=np.stack([prefill_bits, on_air(context, air_bits, 1) * asks], axis=1),
        node_s=np.stack([prefill_s, np.zeros_like(prefill_s)], axis=1),
        node_bytes=np.concatenate([*(s.kv_bytes[row] for s in sides), nothing[:, 0]]),
        device_energy_j=device_s * context.device.power_w.busy,
        deadline_s=np.array([session.ttft_s, session.tpot_s]),
        rate_hz=np.array([1 / session.ttft_s, 1 / session.tpot_s]),
        step_s=step_s,
        device_bytes=_parts_of_memory(session, served, context, split),
        alone_s=np.stack([prefill_s, step_s.sum(axis=1)], axis=1),
        chunks=chunks,
        owners=_owners(served, context),
        guess=_guesses(served, context, split, precision, node),
    )


def _parts_of_memory(session: LlmSession, served: ServedModel, context: WorkloadContext, split: Ints) -> Floats:
    """(J, 2) part of the device's memory that weights and KV cache of each point take."""
    n_layers = served.model.n_layers
    by_split = {k: _device_bytes(session, served, context, k, whole=k == n_layers) for k in set(split.tolist())}
    return np.array([by_split[k] for k in split.tolist()]).reshape(-1, 2) / context.device.memory_bytes


@lru_cache(maxsize=256)
def _chunks(tokens: int, chunk_tokens: int) -> tuple[float, ...]:
    """Parts of a prefill that are sent one by one."""
    if not chunk_tokens:
        return (1.0,)
    return tuple(min(chunk_tokens, tokens - i) / tokens for i in range(0, tokens, chunk_tokens))


@lru_cache(maxsize=256)
def _names(names: tuple[str, ...], node_ids: tuple[str, ...], local: bool) -> tuple[str, ...]:
    networked = tuple(f"{name}/{node}" for node in node_ids for name in names)
    return (*networked, "local") if local else networked


def _quality(context: WorkloadContext, precision_bits: Ints) -> Floats:
    values = {bits: entry.value for bits, entry in context.quality.activation.items()}
    return np.array([values[b] if b else NO_QUANTISATION for b in precision_bits.tolist()], dtype=np.float64)


def _guesses(
    served: ServedModel, context: WorkloadContext, split: Ints, precision_bits: Ints, node: Ints
) -> tuple[str, ...]:
    """Return what enters some row of the table and has no measurement behind it, each once, in a fixed order."""
    found: list[str] = []
    if (split > 0).any():
        found += _device_guesses(context.device, served.ref.weight_bits)
        found += [f"{context.device.key}: power"] if "power" in context.device.guess else []
    if (node != LOCAL).any():
        for device, host in zip(context.node_devices, context.node_hosts, strict=True):
            found += _device_guesses(device, served.ref.weight_bits)
            found += [*(f"{host.key}: {word}" for word in host.guess), *host.guesses(device.key)]
    found += [context.quality.activation[b].guess for b in sorted(set(precision_bits.tolist()) - {0}, reverse=True)]
    return tuple(dict.fromkeys(found))


def _device_guesses(device: Device, weight_bits: int) -> Iterable[str]:
    return (*device.guesses("prefill", weight_bits), *device.guesses("decode", weight_bits))
