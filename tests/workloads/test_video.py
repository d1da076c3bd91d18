"""Video operating points: the source paper's equations worked out by hand, and properties."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workload_cases import CLIP, SESSION, offer, plain_device, shipped, toy_context

from cosched.errors import BadInput
from cosched.workloads import registry, video
from cosched.workloads.base import LOCAL
from cosched.workloads.pruning import local_feasible
from telemetry.messages import VideoClip

URBAN = shipped("urban-llm")
SITE_DEVICES = st.integers(0, 2)


def test_half_and_half_by_hand() -> None:
    """The toy's device does 576 kFLOP/s, its node 5.76 MFLOP/s, of which the site has a quarter."""
    clip = msgspec.structs.replace(CLIP, frame_flop=57_600.0, frame_bits=1000.0)
    table = video.all_points(offer(clip), toy_context(fraction=0.25, one_way_s=0.01))
    j = table.point_ids.index("s=50%/edge0")
    assert table.split[j] == 50
    assert table.device_s[j].tolist() == [0.05, 0.0]
    assert table.fixed_s[j] == pytest.approx([0.05 + 2 * (0.003 + 0.01), 0.0])
    assert table.ul_bits[j].tolist() == [500.0, 0.0]
    assert table.node_s[j] == pytest.approx([0.02, 0.0])
    assert table.device_energy_j[j] == pytest.approx([0.5, 0.0])
    assert table.deadline_s.tolist() == [0.2, math.inf]
    assert table.rate_hz.tolist() == [5.0, 0.0]


def test_ends_by_hand() -> None:
    clip = msgspec.structs.replace(CLIP, frame_flop=57_600.0, frame_bits=1000.0)
    table = video.all_points(offer(clip), toy_context())
    assert table.n_points == 21
    raw, local = table.point_ids.index("s=0%/edge0"), table.point_ids.index("local")
    assert (table.ul_bits[raw, 0], table.device_s[raw, 0]) == (1000.0, 0.0)
    assert table.node_s[raw, 0] == pytest.approx(0.01)
    assert table.node[local] == LOCAL
    assert table.fixed_s[local].tolist() == [0.1, 0.0]
    assert not table.ul_bits[local].any()
    assert not table.node_s[local].any()


@pytest.mark.parametrize(("deadline_s", "alone"), [(0.11, True), (0.1, True), (0.0999, False)])
def test_local_feasible_exactly_when_the_device_is_in_time(deadline_s: float, alone: bool) -> None:
    clip = msgspec.structs.replace(CLIP, frame_flop=57_600.0, deadline_s=deadline_s)
    assert local_feasible(video.all_points(offer(clip), toy_context())) is alone
    assert local_feasible(video.points(offer(clip), toy_context())) is alone


clips = st.builds(
    VideoClip,
    frame_flop=st.floats(1e8, 1e12),
    frame_bits=st.floats(0, 1e8),
    fps=st.floats(0.1, 120),
    deadline_s=st.floats(0.005, 5),
    frames=st.integers(1, 1000),
    private=st.booleans(),
)


@given(clips, SITE_DEVICES)
@settings(max_examples=60, deadline=None)
def test_work_is_conserved_and_data_falls_linearly(clip: VideoClip, share: int) -> None:
    context = URBAN.context_of(share, 2)
    table = video.all_points(offer(clip), context)
    device_flop = table.device_s[:, 0] * video.flop_s(context.device)
    for i, (node, device) in enumerate(zip(context.site.nodes, context.node_devices, strict=True)):
        rows = table.node == i
        node_flop = table.node_s[rows, 0] * video.flop_s(device, node.fraction)
        assert node_flop + device_flop[rows] == pytest.approx(np.full(rows.sum(), clip.frame_flop))
        least = 5 if clip.private else 0
        assert table.split[rows].tolist() == list(range(least, 100, 5))
        assert table.ul_bits[rows, 0] == pytest.approx(clip.frame_bits * (1 - np.arange(least, 100, 5) / 100))


@given(clips, SITE_DEVICES)
@settings(max_examples=60, deadline=None)
def test_points_hold_deadline_and_privacy(clip: VideoClip, share: int) -> None:
    table = registry.points(offer(clip), URBAN.context_of(share, 0))
    assert (table.fixed_s[:, 0] <= clip.deadline_s).all()
    assert not clip.private or (table.split >= 5).all()
    assert (table.precision_bits == 0).all()
    assert (table.quality == 1.0).all()


def test_guess_says_that_nobody_measured_video() -> None:
    guess = video.points(offer(CLIP), URBAN.context_of(0, 0)).guess
    assert {"phone: speed on video", "a100: speed on video", "phone: power"} <= set(guess)


def test_speed_is_peak_times_efficiency_times_slice() -> None:
    assert video.flop_s(plain_device("d", 3e12, 1e9), 0.5) == 1.5e12


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fps": 0.0}, "fps = 0: must be"),
        ({"fps": math.nan}, "fps = nan"),
        ({"frame_flop": -1.0}, "frame_flop = -1"),
        ({"frame_flop": math.inf}, "frame_flop = inf"),
        ({"frame_bits": -1.0}, "frame_bits = -1"),
        ({"frame_bits": math.nan}, "frame_bits = nan"),
        ({"deadline_s": 0.0}, "deadline_s = 0"),
        ({"frames": 0}, "frames = 0"),
        ({"target_ratio": 1.5}, "target_ratio = 1.5"),
        ({"target_ratio": math.nan}, "target_ratio = nan"),
        ({"weight": math.inf}, "weight = inf"),
    ],
)
def test_impossible_clips_are_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        registry.points(offer(CLIP, **changes), toy_context())
    assert str(caught.value).startswith("task t1: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_work_is_refused() -> None:
    with pytest.raises(BadInput, match="no video clip"):
        video.points(offer(SESSION), toy_context())
