"""A reload is a transaction: the new configuration is built beside the old one, and put into force as a whole.

What can be wrong with it is found before anything is changed; from the first change on, nothing waits or fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from cosched.api import messages as api
from cosched.api.access import Access
from cosched.config import wiring as build
from cosched.config.log import configure
from cosched.config.settings import FIXED, LoadedSettings, load
from cosched.core.core import Core
from cosched.daemon import endpoints as places
from cosched.daemon.control import RequestRefused
from cosched.errors import BadInput, CoschedError

if TYPE_CHECKING:
    from cosched.daemon.daemon import Daemon

log = structlog.get_logger()


async def reload(daemon: Daemon) -> api.Reloaded:
    """Read the daemon's configuration file again. Raises Refused."""
    try:
        fresh = load(daemon.loaded.path)
        changed = _changed(daemon.loaded, fresh)
        plant = places.plant(fresh)
        _, access = places.security(fresh)
        await daemon.quiet()
        chosen = fresh.settings.policy if "policy" in changed else daemon.policy_chosen
        core = _successor(daemon.engine.core, plant.core(chosen, fresh.settings.core))
        if "policy" in changed:
            daemon.store.set_policy("")  # the file's word is later than the operator's
    except CoschedError as error:
        raise RequestRefused("refused_configuration", str(error), "the old one stays in force") from None
    daemon.policy_chosen = chosen
    _adopt(daemon, fresh, plant, core, access)
    log.info("reloaded", changed=changed)
    return api.Reloaded(changed=changed, generation=core.snapshot().generation)


def _changed(old: LoadedSettings, fresh: LoadedSettings) -> tuple[str, ...]:
    """Keys that differ. Raises BadInput for those that may not change while the daemon runs."""
    before, after = old.flat(), fresh.flat()
    changed = tuple(sorted(k for k in {*before, *after} if before.get(k) != after.get(k)))
    if fixed := [key for key in changed if key in FIXED]:
        raise BadInput(f"{', '.join(fixed)}: only a restart changes that")
    return changed


def _successor(old: Core, core: Core) -> Core:
    """Return the new core with the old one's state. Raises BadInput when tasks would be lost."""
    if lost := core.restore(old.snapshot()):
        some = ", ".join(lost[:3]) + (" ..." if len(lost) > 3 else "")
        raise BadInput(f"the new site has no place for {len(lost)} tasks ({some}): release or drain them first")
    return core


async def _tell_cluster(daemon: Daemon, plant: build.Plant) -> None:
    await daemon.cluster.adopt(plant)
    daemon.placer.adopt()


def _adopt(daemon: Daemon, fresh: LoadedSettings, plant: build.Plant, core: Core, access: Access | None) -> None:
    settings, engine = fresh.settings, daemon.engine
    daemon.loaded = fresh
    engine.adopt(plant, core)
    daemon.spawn(_tell_cluster(daemon, plant))
    engine.capture.settings = settings.capture
    daemon.pool.budget_s = settings.solver.budget_s
    before, daemon.access, daemon.ingest.access = daemon.access, access, access
    if daemon.authenticator is not None and access is not None:
        daemon.authenticator.access = access
        if before is not None and (gone := before.holders - access.holders):
            log.warning("revoked", names=sorted(name for _, name, _ in gone))
            daemon.sockets.gate.cut("decisions", "telemetry")  # who is still allowed comes again, and is asked again
    configure(settings.log.level)
    engine.begin_capture()
