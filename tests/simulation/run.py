"""`make simulate`: seed after seed until so many events have happened; a seed that fails is shrunk and printed.

Example: make simulate SEED=17 EVENTS=1000
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
from sim_play import play, shrink
from sim_script import Script, draw

STEPS = 700  # of a seed: about a thousand events
MOST_BAD = 10  # seeds that fail: then it ends
OUT = Path("out")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def failed(script: Script, error: str, kind: str, trace: str, *, shrunk: bool) -> None:
    say(f"\nseed {script.seed}: {error}")
    say(f"again: make simulate SEED={script.seed} EVENTS=1")
    say(trace)
    if not shrunk:
        return
    small = shrink(script, kind)
    OUT.mkdir(exist_ok=True)
    path = OUT / f"simulate-{script.seed}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(small)))
    say(f"shrunk from {len(script.steps)} to {len(small.steps)} steps; again: make simulate SCRIPT={path}")
    for step in small.steps:
        say(f"  {step}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--script", type=Path)
    parser.add_argument("--no-shrink", action="store_true")
    args = parser.parse_args()
    if args.script is not None:
        played = play(msgspec.json.decode(args.script.read_bytes(), type=Script))
        say(played.trace or "all invariants held")
        return int(bool(played.error))
    began, cpu, told = time.monotonic(), time.process_time(), time.monotonic()
    seed, events, lives, plans, captures, bad = args.seed, 0, 0, 0, 0, []
    faults, counts, digest = Counter[str](), Counter[str](), hashlib.sha256()
    while events < args.events and len(bad) < MOST_BAD:
        script = draw(seed, STEPS)
        played = play(script)
        world = played.world
        events, lives, plans = events + world.events, lives + world.lives, plans + world.plans
        captures += world.verified
        faults.update(world.faults)
        counts.update(world.counts)
        digest.update(world.digest.digest())
        if played.error:
            bad.append(seed)
            failed(script, played.error, played.kind, played.trace, shrunk=not args.no_shrink)
        seed += 1
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"{events} events, {seed - args.seed} seeds, {len(bad)} failed, {events / (told - began):.0f} events/s")
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    say(f"seeds {args.seed} to {seed - 1} ({seed - args.seed}), {events} events, {lives} lives")
    say(f"{captures} captures verified ({plans} plans), {dict(sorted(counts.items()))}")
    say(f"{sum(faults.values())} faults: " + ", ".join(f"{n} {name}" for name, n in sorted(faults.items())))
    rate = events / max(wall_s, 1e-9), events / max(cpu_s, 1e-9)
    say(f"{wall_s:.0f} s, {cpu_s:.0f} s of CPU: {rate[0]:.0f} events/s, {rate[1]:.0f} per CPU second")
    say(f"digest {digest.hexdigest()}")
    say(f"failed: {bad}" if bad else "all invariants held")
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
