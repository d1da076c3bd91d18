"""The site: cells, nodes, links, models and devices, read from TOML (docs/site.md; examples in config/sites/)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from cosched.errors import BadInput


class Cell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cell's uplink. `ul_prbs` x 12 subcarriers x `scs_khz` is the bandwidth that is shared."""

    id: str
    ul_prbs: int
    scs_khz: int = 15
    one_way_s: float = 0.012  # fixed air-interface and transport delay, each way
    background_fraction: float = 0.0

    @property
    def ul_bandwidth_hz(self) -> float:
        """Shared uplink bandwidth."""
        return self.ul_prbs * 12 * self.scs_khz * 1e3


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An edge or cloud node: `fraction` of a device profile, with a serving framework's host terms."""

    id: str
    device: str  # key in config/devices/
    fraction: float = 1.0
    host: str = "vllm"  # key in config/hosts/
    one_way_s: float = 0.0  # further delay to reach it, each way (a cloud)
    memory_bytes: float | None = None  # None: fraction x the device's memory, less the weights
    background_fraction: float = 0.0


class DeviceShare(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of the UEs that are of one device profile."""

    device: str
    share: float
    max_layers: int | None = None  # of the session's model, that fit its memory


class Ues(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The UE population."""

    count: int
    devices: tuple[DeviceShare, ...]


class ModelRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model served at this site."""

    id: str
    config: str  # key in config/models/ or path of a Hugging Face config.json
    weight_bits: int = 4  # both sides of a split hold the same quantised weights
    activation_bits: tuple[int, ...] = (16, 8, 4)


class Transport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the way from a UE to a node adds to the bytes of a task, where the cell's efficiency does not count it.

    chunk_tokens: of a prefill, sent while the next chunk is computed; 0: a prefill is one message. message_bytes:
    framing of a decoded token, a chunk, a video frame. overhead: headers of packets, as part of their payload.
    """

    chunk_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    message_bytes: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    overhead: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0


class Mix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked for, where requests are drawn; see docs/site.md for each key's source."""

    video_share: float = 0.5
    private_share: float = 0.5
    ttft_s: tuple[float, ...] = (0.5, 1.0, 2.0)
    tpot_s: tuple[float, ...] = (0.05, 0.1, 0.2)
    context_divisor: int = 8
    new_tokens_min: int = 16
    new_tokens_max: int = 512
    max_output_tokens: int = 400
    video_fps: tuple[float, ...] = (2.0, 5.0, 10.0)
    video_gflop: tuple[float, ...] = (60.0, 250.0)
    video_frame_bits: float = 0.5e6
    video_clip_s: float = 8.0
    weights: tuple[float, ...] = (1.0,)
    concurrent_sessions: int = 1  # tasks of a UE at a time, where others are free; 0: whoever is drawn has them all
    model: str = "llama-3-8b"


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One site. Order of cells and nodes is the order of the file: decisions do not depend on names."""

    v: int
    name: str
    cells: tuple[Cell, ...]
    nodes: tuple[Node, ...]
    models: tuple[ModelRef, ...]
    ues: Ues
    mix: Mix = Mix()
    transport: Transport = Transport()
    description: str = ""


# What a site may say: beyond, times and shares that are made of it are no numbers any more.
_FRACTION: Final = (0.0, 1.0)
_DELAY_S: Final = (0.0, 60.0)
LIMITS: Final[dict[type, dict[str, tuple[float, float]]]] = {
    Cell: {"ul_prbs": (1, 1e6), "scs_khz": (1, 1e4), "one_way_s": _DELAY_S, "background_fraction": _FRACTION},
    Node: {"fraction": (1e-6, 1.0), "one_way_s": _DELAY_S, "memory_bytes": (0.0, 1e18)}
    | {"background_fraction": _FRACTION},
    DeviceShare: {"share": _FRACTION, "max_layers": (0, 1e6)},
}


def parse_site(text: str, where: str) -> Site:
    """Parse TOML text. Raises BadInput naming `where` and the offending key."""
    try:
        raw: dict[str, Any] = tomllib.loads(text)
        site = msgspec.convert(raw, Site)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        gone = "decode_batch" in str(error)
        hint = "; nodes decode in steps, whose size is decided: leave decode_batch out (docs/site.md)" if gone else ""
        raise BadInput(f"{where}: {error}{hint}") from None
    _check(site, where)
    return site


def load_site(path: Path) -> Site:
    """Read a site description. Raises BadInput when it is missing or wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; sites that ship: config/sites/*.toml") from None
    return parse_site(text, str(path))


def _check(site: Site, where: str) -> None:
    if site.v != 1:
        raise BadInput(f"{where}: v = {site.v}: this version reads v = 1")
    for what, ids in (("cells", [c.id for c in site.cells]), ("nodes", [n.id for n in site.nodes])):
        if not ids:
            raise BadInput(f"{where}: {what}: at least one is needed")
        if len(set(ids)) != len(ids):
            raise BadInput(f"{where}: {what}: two have the same id")
    for kind, named in (
        ("cells", [(c.id, c) for c in site.cells]),
        ("nodes", [(n.id, n) for n in site.nodes]),
        ("ues.devices", [(d.device, d) for d in site.ues.devices]),
    ):
        for name, one in named:
            _check_limits(one, f"{where}: {kind}: {name}")
    total = sum(d.share for d in site.ues.devices)
    if abs(total - 1) > 1e-6:
        raise BadInput(f"{where}: ues.devices: shares add up to {total:g}, not 1")


def _check_limits(one: msgspec.Struct, where: str) -> None:
    for name, (least, most) in LIMITS[type(one)].items():
        value = getattr(one, name)
        if value is not None and not least <= value <= most:  # NaN is in no range
            raise BadInput(f"{where}: {name} must be {least:g} to {most:g}, not {value:g}")
