"""Scenario files: a site, a radio environment, mobility, arrivals (docs/scenarios.md; config/scenarios/*.toml)."""

from __future__ import annotations

import difflib
import math
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from cosched.errors import BadInput
from cosched.resources import config_file
from cosched.simulate.arrivals import Arrivals
from cosched.simulate.channel import Propagation
from cosched.simulate.mobility import Area, Mobility, hexagonal_sites
from cosched.simulate.pathloss import ENVIRONMENTS, Bools
from cosched.simulate.tomltext import dumps
from cosched.simulate.uplink import Uplink
from cosched.site import Site, load_site, parse_site

LONGEST_S: Final = 86400.0
REPORT_PERIODS_S: Final = (0.1, 0.25)


class Radio(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where cells stand and how they are heard. Sites: one per cell of the site description, in its order."""

    environment: Literal["umi", "uma"] = "umi"  # TR 38.901 Table 7.4.1-1
    carrier_ghz: float = 3.5  # band n78
    cell_radius_m: float = 200.0  # UEs are dropped up to here round each cell
    least_distance_m: float = 10.0  # lower end of Table 7.4.1-1
    inter_site_m: float = 400.0  # of the hexagonal layout used when `sites_m` is empty
    sites_m: tuple[tuple[float, float], ...] = ()
    ue_height_m: float = 1.5
    indoor_share: float = 0.8  # of the UEs: TR 38.901 Table 7.2-1
    report_period_s: float = 0.25  # one of REPORT_PERIODS_S
    hysteresis_db: float = 3.0  # of handover
    uplink: Uplink = Uplink()


class OneShot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one-shot benchmark of this scenario: numbers of tasks offered at once."""

    offered: tuple[int, ...]


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scenario file. `site` is the name of a file in config/sites/, or the site itself as a table."""

    v: int
    name: str
    site: str | dict[str, Any]
    description: str = ""
    duration_s: float = 60.0
    seed: int = 1
    radio: Radio = Radio()
    mobility: Mobility = Mobility()
    arrivals: Arrivals = Arrivals()
    oneshot: OneShot | None = None


@dataclass(frozen=True, slots=True)
class LoadedScenario:
    """A scenario with its site; `site_toml` is the site's text, as a trace carries it; `folder` has its files."""

    scenario: Scenario
    site: Site
    site_toml: str
    folder: Path

    @property
    def area(self) -> Area:
        """Cell sites and the discs of the drop."""
        radio = self.scenario.radio
        sites_m = (
            np.array(radio.sites_m) if radio.sites_m else hexagonal_sites(len(self.site.cells), radio.inter_site_m)
        )
        return Area(sites_m, radio.cell_radius_m, radio.least_distance_m)

    def indoors(self, count: int, rng: np.random.Generator) -> Bools:
        """Draw which of `count` UEs are indoors, (count,)."""
        return np.asarray(rng.uniform(size=count) < self.scenario.radio.indoor_share)

    @property
    def propagation(self) -> Propagation:
        """The environment's column of TR 38.901 at this carrier."""
        radio = self.scenario.radio
        return Propagation(ENVIRONMENTS[radio.environment], radio.carrier_ghz, radio.ue_height_m)


def load_scenario(path: Path) -> LoadedScenario:
    """Read a scenario file. Raises BadInput that names the file, the key and, where it can, the nearest known key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; scenarios that ship: config/scenarios/*.toml") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not a text file; a scenario is TOML") from None
    return parse_scenario(text, str(path), path.parent)


def parse_scenario(text: str, where: str, folder: Path = Path()) -> LoadedScenario:
    """Parse TOML text; files that it names are in `folder`. Raises BadInput as `load_scenario` does."""
    try:
        raw = tomllib.loads(text)
        refuse_unknown(raw, Scenario, where)
        _refuse_not_finite(raw, where)
        scenario = msgspec.convert(raw, Scenario)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise BadInput(f"{where}: {error}") from None
    _check(scenario, where)
    site, site_toml = _site(scenario.site, where)
    if scenario.radio.sites_m and len(scenario.radio.sites_m) != len(site.cells):
        raise BadInput(f"{where}: radio.sites_m has {len(scenario.radio.sites_m)} sites for {len(site.cells)} cells")
    return LoadedScenario(scenario, site, site_toml, folder)


def _site(named: str | dict[str, Any], where: str) -> tuple[Site, str]:
    if isinstance(named, str):
        path = config_file("sites", f"{named}.toml")
        return load_site(path), path.read_text(encoding="utf-8")
    refuse_unknown(named, Site, f"{where}: site")
    text = dumps(named)
    return parse_site(text, f"{where}: site"), text


def refuse_unknown(raw: dict[str, Any], kind: type[msgspec.Struct], where: str, path: str = "") -> None:
    """Raise BadInput at the first key that `kind` or a struct nested in it does not have, with the nearest it has."""
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            mend = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise BadInput(f"{where}: unknown key '{path}{key}'; {mend}")
        for nested in _structs(known[key]):
            for table in value if isinstance(value, list) else [value]:
                if isinstance(table, dict):
                    refuse_unknown(table, nested, where, f"{path}{key}.")


def _refuse_not_finite(value: object, where: str, path: str = "") -> None:
    """TOML has nan and inf; no quantity of a scenario is either."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{where}: {path} = {value}: must be a finite number")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_not_finite(item, where, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for item in value:
            _refuse_not_finite(item, where, path)


def _structs(kind: Any) -> list[type[msgspec.Struct]]:  # noqa: ANN401 - a type expression
    """Structs that a field's type names: `Uplink`, `tuple[Cell, ...]`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for part in typing.get_args(kind) for struct in _structs(part)]


def _check(scenario: Scenario, where: str) -> None:
    """Refuse what no simulation can start from."""
    radio, arrivals = scenario.radio, scenario.arrivals
    link = radio.uplink
    rules = (
        (scenario.v == 1, f"v = {scenario.v}: this version reads v = 1"),
        (
            0 < scenario.duration_s <= LONGEST_S,
            f"duration_s must be in (0, {LONGEST_S:g}], not {scenario.duration_s:g}",
        ),
        (scenario.seed >= 0, f"seed must not be negative, not {scenario.seed}"),
        (0.5 <= radio.carrier_ghz <= 100, f"radio.carrier_ghz must be in 0.5 .. 100, not {radio.carrier_ghz:g}"),
        (0 < radio.least_distance_m < radio.cell_radius_m, "radio.least_distance_m must be in (0, cell_radius_m)"),
        (0 <= radio.indoor_share <= 1, f"radio.indoor_share must be in 0 .. 1, not {radio.indoor_share:g}"),
        (radio.inter_site_m > 0, f"radio.inter_site_m must be above 0, not {radio.inter_site_m:g}"),
        (radio.report_period_s in REPORT_PERIODS_S, f"radio.report_period_s must be one of {REPORT_PERIODS_S}"),
        (radio.hysteresis_db >= 0, "radio.hysteresis_db must not be negative"),
        (1.5 <= radio.ue_height_m < 13, "radio.ue_height_m must be in [1.5, 13): this channel has no taller UEs"),
        (link.reference_prbs >= 1, "radio.uplink.reference_prbs must be at least 1"),
        (0 <= link.alpha <= 1, "radio.uplink.alpha must be in 0 .. 1"),
        (scenario.mobility.speed_m_s >= 0, "mobility.speed_m_s must not be negative"),
        (scenario.mobility.pause_s >= 0, "mobility.pause_s must not be negative"),
        (arrivals.rate_per_s is None or arrivals.load is None, "arrivals: give rate_per_s or load, not both"),
        (arrivals.rate_per_s is None or 0 < arrivals.rate_per_s <= 1e4, "arrivals.rate_per_s must be in (0, 10000]"),
        (arrivals.load is None or 0 < arrivals.load <= 100, "arrivals.load must be in (0, 100]"),
        (arrivals.kind != "recorded" or arrivals.requests is not None, "arrivals: kind 'recorded' needs 'requests'"),
    )
    for holds, complaint in rules:
        if not holds:
            raise BadInput(f"{where}: {complaint}")
