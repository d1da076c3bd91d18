"""A scenario's trace as a list of messages: its site, UE reports, and the tasks that arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cosched.errors import BadInput
from cosched.simulate.arrivals import requests_of
from cosched.simulate.offers import RecordedRequest, draw_offers
from cosched.simulate.reports import ue_ids, ue_reports
from cosched.simulate.scenario import LoadedScenario
from telemetry.messages import Message, SiteMessage

S_NS: Final = 1_000_000_000


def messages(loaded: LoadedScenario, *, seed: int, duration_s: float, rate_per_s: float) -> list[Message]:
    """Draw a trace. Channel and arrivals have generators of their own: another rate leaves the channel as it is.

    Raises BadInput when nothing arrives, TelemetryError when the scenario's request file cannot be read.
    """
    channel_rng, arrival_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    arrivals = loaded.scenario.arrivals
    offers, truths = draw_offers(
        loaded.site,
        requests_of(arrivals, loaded.folder, arrival_rng),
        rate_per_s=rate_per_s,
        duration_s=duration_s,
        rng=arrival_rng,
        ues=ue_ids(loaded.site.ues.count),
        bursts_s=arrivals.bursts_s,
        arrivals=arrivals.kind,
    )
    if not offers:
        raise BadInput(
            f"nothing arrives in {duration_s:g} s at {rate_per_s:g} tasks/s: simulate longer, or raise the rate"
        )
    return [SiteMessage(at_ns=0, toml=loaded.site_toml), *ue_reports(loaded, channel_rng, duration_s), *offers, *truths]


def recorded_rate_per_s(requests: Sequence[RecordedRequest]) -> float:
    """Return the mean rate of a recording; what kind "recorded" keeps unless the scenario gives another."""
    span_s = requests[-1].at_s - requests[0].at_s
    if not span_s > 0:
        raise BadInput("the recorded requests all arrive at one instant: give arrivals.rate_per_s or arrivals.load")
    return (len(requests) - 1) / span_s
