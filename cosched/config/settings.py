"""The daemon's configuration: one TOML file over config/cosched.toml, `COSCHED_*` over both, unknown keys refused.

A key `b` of section `[a]` is overridden by the environment variable `COSCHED_A_B`, whose text is read as a TOML value
where it is one and as plain text otherwise. What each key means stands beside its default in config/cosched.toml.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from cosched.core.settings import Settings as CoreSettings
from cosched.errors import BadInput
from cosched.resources import config_dir

PREFIX: Final = "COSCHED_"
NOT_KEYS: Final = frozenset(  # that other parts read
    {"COSCHED_CONFIG", "COSCHED_KEYS", "COSCHED_KERNEL"}
    | {f"COSCHED_HOST_{name}" for name in ("MODELS", "BIND", "KEY", "ALLOWED", "LIMITS")}
)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section: every key is in config/cosched.toml, so none has a default here."""


class TelemetrySettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[telemetry]."""

    bind: tuple[str, ...]
    max_message_bytes: int
    stale_input_s: float
    stale_ue_s: float


class ControlSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[control]."""

    bind: tuple[str, ...]
    decisions: tuple[str, ...]
    max_message_bytes: int
    max_waiting: int


class LeaseSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[lease]."""

    silent_s: float
    life_s: float


class QuotaSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[quota]."""

    tasks: int
    ue_tasks: int
    ue_share: float


class SolverSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[solver]."""

    budget_s: float


class StateSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[state]."""

    dir: str


class CaptureSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[capture]."""

    enabled: bool
    dir: str
    max_bytes: int
    max_age_s: float
    keep: int


class ShadowSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[shadow]."""

    enabled: bool
    baseline: str
    window_s: float


class ClusterSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[cluster]."""

    mode: str
    address: str
    token_file: str
    executor: str
    unapplied_periods: int
    retries: int
    silent_s: float
    placement: str
    placement_s: float

    @property
    def is_placed(self) -> bool:
        """Whether nodes are to hold the layers that are asked for, as far as they have room, and not all."""
        chosen = self.placement == "on" or (self.placement == "auto" and self.executor == "host")
        return chosen and self.mode != "off"


class ShutdownSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[shutdown]."""

    lease_s: float


class SecuritySettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[security]."""

    keys: str
    key: str
    max_connections: int
    connection_bytes_per_s: float


class MetricsSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[metrics]."""

    listen: str


class LogSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[log]."""

    level: str


class DaemonSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    v: int
    site: str
    policy: str
    ue_devices: dict[str, str]
    telemetry: TelemetrySettings
    control: ControlSettings
    core: CoreSettings
    lease: LeaseSettings
    quota: QuotaSettings
    solver: SolverSettings
    state: StateSettings
    capture: CaptureSettings
    shadow: ShadowSettings
    cluster: ClusterSettings
    shutdown: ShutdownSettings
    security: SecuritySettings
    metrics: MetricsSettings
    log: LogSettings


# May not change while the daemon runs: sockets, files and processes hang on them.
FIXED: Final = ("telemetry.bind", "control.bind", "control.decisions", "state.dir", "security.keys", "security.key",
                "security.max_connections", "security.connection_bytes_per_s",
                "metrics.listen", "telemetry.max_message_bytes", "control.max_message_bytes",
                *(f"cluster.{key}" for key in ClusterSettings.__struct_fields__))  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """A configuration with the origin of each value: `default`, the file's path, or the variable's name."""

    settings: DaemonSettings
    origin: Mapping[str, str]  # dotted key -> origin
    path: Path | None

    def flat(self) -> dict[str, object]:
        """Dotted key -> value."""
        return flatten(msgspec.to_builtins(self.settings))


def default_file() -> Path:
    """Return the file with all defaults."""
    return config_dir() / "cosched.toml"


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> LoadedSettings:
    """Read the configuration. Raises BadInput: what, where, and the nearest known key."""
    environ = os.environ if environ is None else environ
    merged = flatten(_parse(default_file()))
    origin = dict.fromkeys(merged, "default")
    layers = [] if path is None else [(flatten(_parse(path)), str(path))]
    layers += [({key: value}, name) for key, value, name in _from_environment(merged, environ)]
    for values, where in layers:
        for key, value in values.items():
            if key not in merged and not key.startswith("ue_devices."):
                raise BadInput(f"{where}: unknown key '{key}'{_nearest(key, merged)}")
            merged[key], origin[key] = value, where
    try:
        settings = msgspec.convert(_nested(merged), DaemonSettings)
    except msgspec.ValidationError as error:
        raise BadInput(f"{_blame(str(error), origin)}: {error}") from None
    check(settings, str(path or default_file()))
    return LoadedSettings(settings, origin, path)


def check(settings: DaemonSettings, where: str) -> None:
    """Refuse what the types allow but no daemon can do. Raises BadInput."""
    from cosched.config.log import LEVELS
    from cosched.core.policy import checked_objective, policy

    if settings.v != 1:
        raise BadInput(f"{where}: v = {settings.v}: this version reads v = 1")
    policy(settings.policy)
    policy(settings.shadow.baseline)
    checked_objective(settings.core.objective, f"{where}: core.objective")
    if settings.log.level not in LEVELS:
        raise BadInput(f"{where}: log.level '{settings.log.level}': one of {', '.join(LEVELS)}")
    if not 0.01 <= settings.core.period_s <= 1.0:
        raise BadInput(f"{where}: core.period_s {settings.core.period_s:g}: a near-RT period is 0.01 to 1 s")
    if settings.core.lease_s < 2 * settings.core.period_s:
        raise BadInput(f"{where}: core.lease_s must be at least two periods, or leases run out between two plans")
    positive = ("solver.budget_s", "telemetry.stale_input_s", "telemetry.stale_ue_s", "capture.max_bytes",
                "capture.max_age_s", "shadow.window_s", "control.max_waiting", "core.max_ues",
                "security.max_connections", "security.connection_bytes_per_s", "lease.silent_s", "lease.life_s",
                "quota.tasks", "quota.ue_tasks", "quota.ue_share",
                "cluster.unapplied_periods", "cluster.silent_s", "cluster.placement_s")  # fmt: skip
    values = flatten(msgspec.to_builtins(settings))
    for key in positive:
        number = values[key]
        if not isinstance(number, int | float) or not number > 0:
            raise BadInput(f"{where}: {key} must be above 0, not {number}")
    _check_cluster(settings.cluster, where)


def _check_cluster(cluster: ClusterSettings, where: str) -> None:
    if cluster.mode not in {"off", "local", "join"}:
        raise BadInput(f"{where}: cluster.mode '{cluster.mode}': one of off, local, join")
    if cluster.placement not in {"auto", "on", "off"}:
        raise BadInput(f"{where}: cluster.placement '{cluster.placement}': one of auto, on, off")
    host, _, port = cluster.address.rpartition(":")
    if cluster.mode == "join" and not (host and port.isdecimal()):
        raise BadInput(f"{where}: cluster.address '{cluster.address}': to join, host:port of the cluster's GCS")
    if cluster.mode == "join" and cluster.token_file and not Path(cluster.token_file).is_file():
        raise BadInput(f"{where}: cluster.token_file '{cluster.token_file}': no such file")
    if cluster.retries < 0:
        raise BadInput(f"{where}: cluster.retries must be 0 or more, not {cluster.retries}")


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; 'cosched config show' prints a whole one") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: {error}") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables -> dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {"ue_devices": {}}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return tree


def _from_environment(known: Mapping[str, Any], environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    """(key, value, variable) of every COSCHED_* variable. Raises BadInput for one that is no key."""
    names = {PREFIX + key.upper().replace(".", "_"): key for key in known}
    found = []
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in NOT_KEYS:
            if variable not in names:
                raise BadInput(f"{variable}: no such key{_nearest(variable, names)}")
            found.append((names[variable], _value(environ[variable]), variable))
    return found


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):
        return text


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _blame(message: str, origin: Mapping[str, str]) -> str:
    """Who set the value that msgspec complains of (`... - at `$.solver.budget_s``)."""
    key = message.rpartition("`$.")[2].rstrip("`").partition("[")[0]
    return origin.get(key, "configuration")
