"""The planner's numbers, each with unit and reason."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of the core; equal settings and equal events give equal decisions."""

    period_s: float = 0.1
    """Near-RT period: at 20 ms a prototype met .73 of its tasks, at 100 ms .72, at 500 ms .68."""

    lease_s: float = 0.5
    """A decision is valid this long; renewed every period."""

    deadline_margin: float = 0.95
    """Deadlines are planned at this part of their length (docs/daemon.md)."""

    ewma: float = 0.3
    """Weight of a new channel sample in the running mean and variance."""

    session_risk_sd: float = 0.5
    """LLM sessions are planned with the mean efficiency less this many standard deviations: their TPOT is a mean over
    the session, so a bad moment is made up for."""

    frame_risk_sd: float = 1.0
    """Video is planned with the mean less this many: every frame has a deadline of its own."""

    idle_sd_per_s: float = 0.05
    """An idle UE's relative standard deviation grows by this a second (after 5 s the 5th percentile of new/old
    efficiency was 0.2 to 0.5 in the recordings)."""

    idle_sd_max: float = 0.4
    """... up to this."""

    z: float = 0.6
    """Safety of statistical admission: standard deviations of the use of a resource kept free (docs/model.md,
    section 6). Smaller than for hard deadlines, as TPOT is a mean over a session (the trade: docs/decisions/0010)."""

    stickiness: float = 1.0
    """Value added, in multiples of its weight, for going on serving an admitted session: who wants its place must be
    worth more than both."""

    objective: str = "none"
    """What the joint policy shares out what is left over by, after admission: latency, max-latency, alpha-fair[:ALPHA]
    or energy (docs/exact.md). "none": shares stay as small as the deadlines allow (docs/decisions/0004)."""

    switch_cost: float = 0.2
    """Value that another operating point of a running session must save before it is taken."""

    pace_horizon: int = 20
    """Tokens over which a decoder that is behind (or ahead of) its TPOT is brought back to it."""

    pace_least: float = 0.4
    """A decoder that is behind is planned at no less than this part of its TPOT."""

    pace_most: float = 4.0
    """A decoder that is ahead is planned at no more than this multiple of its TPOT: what it is ahead by is lent to
    others. 1 lends nothing and met 3 to 5 % fewer tasks, 10 no more than 4 (docs/decisions/0010)."""

    calibration_most: float = 4.0
    """What running sessions measure corrects profiled times by a factor of at most this, and at least its inverse
    (cosched/profiles/calibration.py). 1 corrects nothing."""

    congestion_price: float = 4.0
    """Price of a full resource at which newcomers' points are weighed, in value (cosched/core/congestion.py)."""

    bid_window_s: float = 60.0
    """Arrivals of this long stand for those to come (cosched/core/bids.py)."""

    bid_period_s: float = 2.0
    """Bid prices are worked out anew this often."""

    bid_fill: float = 0.9
    """Part of a resource that can be sold: arrivals do not come evenly."""

    bid_share: float = 0.9
    """A point that needs more than this share of a resource is not counted on."""

    bid_low: float = 0.3
    """Planned use of a resource below which its bid price is not asked (with weights 1 and 5 at loads 1.25 to 2, 0.3
    met 1 % more value than 0.6, and no less than 0) ..."""

    bid_high: float = 0.9
    """... and from which on it is asked in full."""

    max_ues: int = 20_000
    """UEs that are known at once. Beyond, and from nine tenths on where they are silent, some are forgotten
    (cosched/core/known.py)."""

    expected_output: float = 0.6
    """Tokens that a session is expected to generate, as part of the most that it may. Chosen: of at most 400 the Azure
    conversation trace has 0.49 on average."""
