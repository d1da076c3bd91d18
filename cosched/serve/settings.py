"""The front end's configuration: one TOML file over config/serve.toml, unknown keys refused."""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from cosched.errors import BadInput
from cosched.resources import config_dir

OTHERS: Final = 0o007  # of a file's mode: what everybody may do with it
DIGEST_CHARS: Final = 64  # SHA-256 in hexadecimal

Positive = Annotated[float, msgspec.Meta(gt=0)]
Counted = Annotated[int, msgspec.Meta(ge=1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: every key has its default in config/serve.toml."""


class DaemonAccess(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[daemon]."""

    control: str
    telemetry: str
    key: str
    server: str


class TlsFiles(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tls]."""

    cert: str
    key: str


class Terms(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key's requests are planned with, and how many it may have. [defaults], and what a key says."""

    ue: str
    ues: tuple[str, ...]
    ttft_ms: Positive
    tpot_ms: Positive
    private: bool
    weight: Annotated[float, msgspec.Meta(ge=0)]
    fallback: str
    models: tuple[str, ...]
    requests_per_min: Positive
    concurrent: Counted


class ApiKey(Terms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[keys]]: a client, known by the SHA-256 of its secret."""

    name: str
    sha256: str


class WiredUes(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[wired]."""

    ues: tuple[str, ...]
    cell: str
    efficiency_bps_hz: Positive
    period_s: Positive


class ServeLimits(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[limits]."""

    running: Counted
    waiting: Annotated[int, msgspec.Meta(ge=0)]
    retry_s: Positive
    body_bytes: Counted
    header_bytes: Counted
    header_s: Positive
    body_s: Positive
    idle_s: Positive
    write_s: Positive
    request_s: Positive
    connections: Counted
    connections_each: Counted
    messages: Counted
    prompt_tokens: Counted
    output_tokens: Counted
    default_output_tokens: Counted
    stops: Counted
    patience_s: Positive
    closing_s: Positive


class LogTable(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[log]."""

    level: str


class ServedRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[models]]: a model of the site."""

    id: str  # as the site names it
    path: str  # folder of its checkpoint, or config.json
    seed: int | None = None  # of weights that are drawn
    layers: Annotated[int, msgspec.Meta(ge=0)] = 0  # loaded here: what leases with a split ask of a UE
    dtype: str = "float32"


class NodeRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[nodes.ID]: where a node serves, if its lease does not say."""

    endpoint: str
    key: str = ""


class ServeSettings(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    v: int
    listen: str
    behind_proxy: bool
    name: str
    daemon: DaemonAccess
    tls: TlsFiles
    defaults: Terms
    wired: WiredUes
    limits: ServeLimits
    log: LogTable
    models: tuple[ServedRef, ...] = ()
    nodes: dict[str, NodeRef] = {}
    keys: tuple[ApiKey, ...] = ()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can connect."""
        host, _ = self.address
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:  # a name
            return False


@dataclass(frozen=True, slots=True)
class LoadedServe:
    """A configuration, and the file that it is of."""

    settings: ServeSettings
    path: Path


def load(path: Path) -> LoadedServe:
    """Read the configuration. Raises BadInput: what, where, the mend."""
    default, own = _parse(config_dir() / "serve.toml"), _parse(path)
    merged: dict[str, Any] = {**default, **own}
    for name, table in default.items():
        if isinstance(table, dict) and isinstance(own.get(name, {}), dict):
            merged[name] = {**table, **own.get(name, {})}
    if isinstance(merged.get("keys"), list):
        merged["keys"] = [{**merged["defaults"], **key} if isinstance(key, dict) else key for key in merged["keys"]]
    try:
        settings = msgspec.convert(merged, ServeSettings)
    except msgspec.ValidationError as error:
        raise BadInput(f"{path}: {error}; config/serve.toml has every key") from None
    check(settings, path)
    return LoadedServe(settings, path)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; docs/serve.md has an example") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: {error}") from None


def check(settings: ServeSettings, where: Path) -> None:
    """Refuse what the types allow but no front end can do. Raises BadInput."""
    if settings.v != 1:
        raise BadInput(f"{where}: v = {settings.v}: this version reads v = 1")
    host, _, port = settings.listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput(f"{where}: listen = '{settings.listen}': give host:port, such as 127.0.0.1:8080")
    if not settings.models:
        raise BadInput(
            f"{where}: no model: add [[models]] with the id that the site has and the path of its checkpoint"
        )
    _check_names(settings, where)
    if settings.wired.ues and not settings.wired.cell:
        raise BadInput(
            f"{where}: wired.ues without wired.cell: name the cell of the site that stands for their network"
        )
    _check_reach(settings, where)


def _check_names(settings: ServeSettings, where: Path) -> None:
    for what, names in (
        ("models", [m.id for m in settings.models]), ("keys", [k.name for k in settings.keys]),
        ("keys: sha256", [k.sha256 for k in settings.keys]),
    ):  # fmt: skip
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadInput(f"{where}: {what} '{min(twice)}' stands twice")
    for terms in (settings.defaults, *settings.keys):
        if terms.fallback not in {"keep", "drop", "local"}:
            raise BadInput(f"{where}: fallback '{terms.fallback}': one of keep, drop, local")
    for key in settings.keys:
        if len(key.sha256) != DIGEST_CHARS or not set(key.sha256) <= set("0123456789abcdef"):
            raise BadInput(
                f"{where}: key '{key.name}': sha256 is no digest; 'cosched serve --new-key {key.name}' makes one"
            )


def _check_reach(settings: ServeSettings, where: Path) -> None:
    tls = settings.tls
    if bool(tls.cert) != bool(tls.key):
        raise BadInput(f"{where}: tls.cert and tls.key go together")
    for file in filter(None, (tls.cert, tls.key)):
        if not Path(file).is_file():
            raise BadInput(f"{where}: [tls] {file}: no such file")
    if tls.key and Path(tls.key).stat().st_mode & OTHERS:
        raise BadInput(f"{where}: tls.key {tls.key}: everybody can read it; chmod o= {tls.key}")
    if settings.is_loopback:
        return
    if not settings.keys:
        raise BadInput(
            f"{where}: listen = '{settings.listen}' is beyond this machine and needs [[keys]]: "
            "'cosched serve --new-key NAME' makes one"
        )
    if not tls.cert and not settings.behind_proxy:
        raise BadInput(
            f"{where}: listen = '{settings.listen}' is beyond this machine and needs [tls], or behind_proxy = true"
        )
