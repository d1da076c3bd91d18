"""From a trace's messages to the Workbook that a replay reads: operating points, channel, what to leave out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cosched.errors import BadInput
from cosched.profiles.device import Device
from cosched.replay.replayer import NS, Report, Workbook, channel_truth, explode, truths_of, units_of
from cosched.simulate.offers import assign_devices
from cosched.site import Site, parse_site
from cosched.workloads import registry
from cosched.workloads.base import LOCAL
from cosched.workloads.context import SiteProfiles, load_profiles, session_memory_bytes
from telemetry.messages import Message, SiteMessage, TaskOffer, UeReport


def site_of(messages: Sequence[Message], where: str) -> Site:
    """Return the site that a trace was made for. Raises BadInput when it says none."""
    for message in messages:
        if isinstance(message, SiteMessage):
            return parse_site(message.toml, f"{where}: site")
    raise BadInput(f"{where}: the trace has no site description; make one with 'cosched import' or 'cosched simulate'")


def make_book(messages: Sequence[Message], where: str, *, site: Site | None = None) -> Workbook:
    """Read a trace once for all policies. Raises BadInput when there is nothing to decide in it.

    UEs have devices by their rank among the trace's UEs in order of name. Tasks of UEs without one valid radio sample
    are left out with a warning that counts them; tasks that their device serves alone in time are set apart.
    """
    site = site_of(messages, where) if site is None else site
    reports = explode(messages)
    truth, rows = channel_truth(reports)
    offers = sorted((m for m in messages if isinstance(m, TaskOffer)), key=lambda o: (o.at_ns, o.seq, o.task))
    if not rows:
        raise BadInput(f"{where}: no valid radio sample of any UE; nothing can be planned")
    if not offers:
        raise BadInput(f"{where}: no task is offered in this trace; import it with --requests, or simulate one")
    _refuse_twins(offers, where)
    heard = [o for o in offers if o.ue in rows]
    if not heard:
        raise BadInput(f"{where}: none of {len(offers)} tasks is of a UE with a valid radio sample; check the UE ids")
    profiles = load_profiles(site)
    cells = _first_cells(reports, site, where)
    shares = assign_devices(site, sorted({r.ue for _, r in reports if isinstance(r, UeReport)}))
    tables = {o.task: registry.points(o, profiles.context_of(shares[o.ue], cells[o.ue])) for o in heard}
    alone = {task for task, table in tables.items() if (table.node == LOCAL).any()}
    tokens = truths_of(messages)
    return Workbook(
        site=site,
        reports=tuple(reports),
        offers=tuple((o.at_ns * NS, o) for o in heard if o.task not in alone),
        local=tuple(o for o in heard if o.task in alone),
        units={o.task: units_of(o, tokens.get(o.task)) for o in heard},
        tables=tables,
        truth=truth,
        ue_rows=rows,
        node_bytes=session_memory_bytes(profiles),
        cell_of_ue={ue: site.cells[cell].id for ue, cell in cells.items()},
        tx_power_w={o.task: _device(profiles, shares[o.ue]).ul_tx_power_w for o in heard},
        node_power_w=np.array(
            [d.power_w.busy * n.fraction for d, n in zip(profiles.node_devices, site.nodes, strict=True)]
        ),
        duration_s=max(m.at_ns for m in messages) * NS,
        warnings=_warnings(where, len(offers) - len(heard)),
    )


def _device(profiles: SiteProfiles, share: int) -> Device:
    return profiles.devices[profiles.site.ues.devices[share].device]


def _refuse_twins(offers: Sequence[TaskOffer], where: str) -> None:
    seen: set[str] = set()
    for offer in offers:
        if offer.task in seen:
            raise BadInput(f"{where}: task {offer.task!r} is offered twice; task ids must be unique in a trace")
        seen.add(offer.task)


def _first_cells(reports: Sequence[tuple[float, Report]], site: Site, where: str) -> dict[str, int]:
    """UE -> index of the first cell that serves it. Raises BadInput for a cell that the site does not have."""
    index = {c.id: i for i, c in enumerate(site.cells)}
    cells: dict[str, int] = {}
    for _, report in reports:
        if isinstance(report, UeReport) and report.ue not in cells:
            if report.cell not in index:
                there = ", ".join(index)
                raise BadInput(f"{where}: {report.ue} is in cell {report.cell!r}, which the site lacks; it has {there}")
            cells[report.ue] = index[report.cell]
    return cells


def _warnings(where: str, unheard: int) -> tuple[str, ...]:
    return (f"{where}: {unheard} tasks left out: their UE has no valid radio sample",) if unheard else ()
