"""What a replay may tell a policy beforehand, to see what not knowing it costs. No policy that runs live has any of it.

The core decides from events and settings as ever: what is foreseen comes to it as reports, offers, bid prices and
settings that it would have if the future were known. The replay makes these here; the core knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from cosched.core.bids import Arrival, BidPrices
from cosched.core.core import Core
from cosched.core.settings import Settings
from cosched.fluid.world import ChannelTruth
from cosched.replay.past import Carried
from cosched.workloads.base import PointTable
from telemetry.messages import LlmSession, TaskOffer, UeReportBatch, VideoClip

NEXT_S: Final = 1.0  # of the channel, for who decodes: what comes later he will be told later
LEAST_BPS_HZ: Final = 1e-3
WHOLE_FRAMES: Final = 1e-9  # rounding


@dataclass(frozen=True, slots=True)
class Foresight:
    """Which of the future is known.

    lengths: an offer's greatest number of tokens is the one that it will have; channel: a UE's efficiency is the mean
    over the time that it is planned for, with no spread; arrivals: bid prices come from those who will ask; only: of
    all who ask just these are let through to the policy, the others are refused at once (None: everybody is).
    """

    lengths: bool = False
    channel: bool = False
    arrivals: bool = False
    only: frozenset[str] | None = None

    def settings(self, settings: Settings) -> Settings:
        """Without what is for the unknown."""
        if self.lengths:
            settings = msgspec.structs.replace(settings, expected_output=1.0)
        if self.channel:
            settings = msgspec.structs.replace(
                settings, ewma=1.0, session_risk_sd=0.0, frame_risk_sd=0.0, idle_sd_per_s=0.0
            )
        return settings

    def offer(self, offer: TaskOffer, units: int) -> TaskOffer:
        """The offer as it would be if its length were known."""
        if not self.lengths or not isinstance(offer.work, LlmSession):
            return offer
        return msgspec.structs.replace(offer, work=msgspec.structs.replace(offer.work, max_output_tokens=units))


NOTHING: Final = Foresight()


class ComingChannel:
    """Efficiency that a UE will have, by what it is asked for."""

    def __init__(self, truth: ChannelTruth, end_s: float) -> None:
        self._truth = truth
        self._end_s = end_s
        self._carried: dict[int, Carried] = {}

    def of(self, ue: int, offer: TaskOffer, now_s: float, *, decodes: bool) -> float:
        """For the task as far as it is: of a clip what all but the frames that it may lose have."""
        at_s, work = max(now_s, 0.0), offer.work
        carried = self._carried.get(ue)
        if carried is None:
            carried = self._carried[ue] = Carried(self._truth, ue, self._end_s)
        if isinstance(work, VideoClip):
            released = offer.at_ns * 1e-9 + np.arange(work.frames) / work.fps
            left = released[released > at_s - work.deadline_s]
            start = left if len(left) else np.array([at_s])
            means = np.sort(carried.bits(start + work.deadline_s) - carried.bits(start)) / work.deadline_s
            value = float(means[int((1.0 - work.target_ratio) * len(means) + WHOLE_FRAMES)])
        else:
            length_s = NEXT_S if decodes else work.ttft_s
            start = np.array([at_s, at_s + length_s])
            value = float(np.diff(carried.bits(start))[0] / length_s)
        return max(value, LEAST_BPS_HZ)


def channel_report(
    core: Core, coming: ComingChannel, rows: Mapping[str, int], offers: Iterable[TaskOffer], now_s: float
) -> UeReportBatch | None:
    """What the UEs of those who run, and of `offers`, will have: one report for all whose cell is known."""
    values: dict[str, float] = {}
    for task in core.state.tasks.values():
        values[task.offer.ue] = coming.of(rows[task.offer.ue], task.offer, now_s, decodes=task.phase == 1)
    for offer in offers:
        values[offer.ue] = coming.of(rows[offer.ue], offer, now_s, decodes=False)
    cells = core.state.site.cells
    known = [ue for ue in values if ue in core.state.cell_of_ue]
    if not known:
        return None
    return UeReportBatch(
        at_ns=round(now_s * 1e9),
        source="foresight",
        seq=0,
        ue=tuple(known),
        cell=tuple(cells[core.state.cell_of_ue[ue]].id for ue in known),
        ul_efficiency_bps_hz=tuple(values[ue] for ue in known),
    )


def price_arrivals(
    core: Core, coming: Sequence[tuple[float, TaskOffer]], tables: Mapping[str, PointTable], now_s: float
) -> None:
    """Give the core the bid prices of those who will ask within the time of which it else looks back.

    coming: from now on, in order. Channels are taken as they are estimated now.
    """
    span_s = core.settings.bid_window_s
    prices = BidPrices(core.state.site, core.settings)
    efficiency = core.state.channel.planned(now_s, core.settings.session_risk_sd)
    for at_s, offer in coming:
        ue, cell = core.state.channel.index(offer.ue), core.state.cell_of_ue.get(offer.ue, -1)
        if at_s > now_s + span_s:
            break
        if ue >= 0 and cell >= 0:
            prices.note(Arrival(at_s - span_s, offer, tables[offer.task], cell, float(efficiency[ue])))
    prices.restore((), core.bids.price, 0.0)
    prices.refresh(now_s, core.state.background)
    core.bids.restore((), prices.price, np.inf)
