"""Configuration -> wired objects: the one place that knows which core a configuration means.

The daemon, `cosched verify` and what-if questions build their cores here, and so decide alike.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cosched.core.core import Core
from cosched.core.policy import policy
from cosched.core.settings import Settings as CoreSettings
from cosched.errors import BadInput
from cosched.profiles.calibration import Factors
from cosched.resources import config_dir, config_file
from cosched.site import Site, parse_site
from cosched.workloads import registry
from cosched.workloads.base import PointTable
from cosched.workloads.context import SiteProfiles, load_profiles, session_memory_bytes
from telemetry.messages import LlmSession, TaskOffer, VideoClip

KEPT_TABLES: Final = 10_000  # operating points depend on work, device and cell alone; the oldest go first


@dataclass(frozen=True, slots=True)
class Plant:
    """A site with all that its description refers to, and which UE has which device."""

    site: Site
    toml: str
    profiles: SiteProfiles
    ue_devices: Mapping[str, str]
    _tables: dict[tuple[LlmSession | VideoClip, int, int, Factors], PointTable] = field(
        default_factory=dict, repr=False
    )

    def core(self, policy_name: str, settings: CoreSettings) -> Core:
        """Return a core for this site that knows nothing yet. Raises BadInput for an unknown policy."""
        memory = session_memory_bytes(self.profiles, placed=True)  # where nothing is placed, it was checked
        return Core(self.site, policy(policy_name), settings, self.points, memory)

    def points(self, offer: TaskOffer, cell: int, factors: Factors = ()) -> PointTable:
        """Operating points of an offer from `cell`. Raises BadInput with what is wrong in it."""
        device = self.device(offer.ue)
        key = (offer.work, device, cell, factors)
        table = self._tables.get(key)
        if table is None:
            table = registry.points(offer, self.profiles.context_of(device, cell, factors))
            if len(self._tables) >= KEPT_TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = table
        return table

    def device(self, ue: str) -> int:
        """Index into site.ues.devices: as configured, else by the name's CRC-32, in the shares of the site."""
        devices = self.site.ues.devices
        if (wanted := self.ue_devices.get(ue)) is not None:
            return next(i for i, d in enumerate(devices) if d.device == wanted)
        at, total = zlib.crc32(ue.encode()) / 2**32, 0.0
        for i, share in enumerate(devices):
            total += share.share
            if at < total:
                return i
        return len(devices) - 1


def plant(site_toml: str, where: str, ue_devices: Mapping[str, str]) -> Plant:
    """Build from the text of a site description. Raises BadInput."""
    site = parse_site(site_toml, where)
    there = {d.device for d in site.ues.devices}
    for ue, device in ue_devices.items():
        if device not in there:
            raise BadInput(f"ue_devices.{ue} = '{device}': the site's UEs have {', '.join(sorted(there))}")
    return Plant(site, site_toml, load_profiles(site), dict(ue_devices))


def site_text(name: str) -> tuple[str, str]:
    """Text of a site description and where it is: a file, or the name of one that ships. Raises BadInput."""
    path = Path(name) if name.endswith(".toml") else config_file("sites", f"{name}.toml")
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; sites that ship: config/sites/*.toml") from None


def profiles_sha256() -> str:
    """Of all shipped profiles: equal ones make equal operating points."""
    digest = hashlib.sha256()
    folder = config_dir()
    for group in ("devices", "hosts", "models", "quality.toml"):
        top = folder / group
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
