"""The adversary's script: what happens when, drawn from one seed, as plain rows, so that what fails can be shrunk.

A row carries all the randomness that it needs: dropping rows leaves the meaning of the others.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np

MEAN_WAIT_MS: Final = 9.0

CALM: Final = {
    "radio": 40.0, "batch": 10.0, "submit": 6.0, "progress": 12.0, "release": 2.0, "cell": 3.0, "node": 3.0,
    "timing": 3.0, "show": 2.0, "list": 0.5, "status": 0.5, "subscribe": 1.0, "policies": 0.2,
}  # fmt: skip
FAULTS: Final = {
    "flood": 0.3, "garbage-bus": 2.0, "garbage-control": 2.0, "absurd": 1.0, "resubmit": 1.5, "steal": 1.5,
    "bar": 1.5, "shrink": 1.0, "place": 1.0, "handover": 1.5, "policy": 0.7, "drain": 0.2, "reload": 0.4, "pause": 0.3,
    "wall": 0.3, "disk": 0.8, "solver": 3.0, "kill": 0.3, "fuse": 1.0, "stop": 0.15, "reboot": 0.15, "second": 0.3,
    "fence": 0.05, "questions": 0.1, "silence": 0.2, "strangers": 1.0,
}  # fmt: skip
FATES: Final = ("drop", "delay", "double", "corrupt", "swap")


class Step(NamedTuple):
    """After `wait_ms` do `kind`, by three numbers in [0, 1). fate: what the network does to it."""

    wait_ms: float
    kind: str
    a: float
    b: float
    c: float
    fate: str = ""


class Script(msgspec.Struct, frozen=True):
    """One run: the world's own choices and what happens in it."""

    seed: int
    site: int  # which of the world's sites
    policy: str
    steps: list[Step]


POLICIES: Final = ("joint", "greedy", "greedy-residual", "pf-admit", "equal-rate-admit", "pf", "compute-only", "local")


def draw(seed: int, n_steps: int) -> Script:
    """Draw a script. Each seed has faults of its own, of some kinds and at rates of its own."""
    rng = np.random.default_rng(seed)
    weights = dict(CALM)
    for kind, weight in FAULTS.items():
        if rng.random() < 0.6:
            weights[kind] = weight * float(rng.exponential())
    kinds, p = list(weights), np.array(list(weights.values()))
    chosen = rng.choice(len(kinds), size=n_steps, p=p / p.sum())
    waits = rng.exponential(MEAN_WAIT_MS * float(rng.choice([0.5, 1.0, 2.0])), size=n_steps)
    numbers = rng.random((n_steps, 3))
    lossy = float(rng.choice([0.0, 0.02, 0.2]))
    fates = [FATES[int(rng.integers(len(FATES)))] if r < lossy else "" for r in rng.random(n_steps)]
    policy = POLICIES[0] if rng.random() < 0.4 else POLICIES[int(rng.integers(1, len(POLICIES)))]
    rows = zip(waits.tolist(), chosen.tolist(), numbers.tolist(), fates, strict=True)
    steps = [Step(round(w, 3), kinds[k], *(round(x, 6) for x in abc), fate=fate) for w, k, abc, fate in rows]
    return Script(seed=seed, site=int(rng.integers(3)), policy=policy, steps=steps)


def pick(x: float, n: int) -> int:
    """Turn a number in [0, 1) into one of 0 .. n - 1."""
    return min(int(x * n), n - 1)
