"""Coverage-guided hunting with atheris: `make fuzz TARGET=bus SECONDS=300`. What is new in coverage is kept.

Ours decides how an input is changed (mutation.py), atheris which inputs are worth changing again. A failing input is
written to out/fuzz/, and the run ends with it. The smallest of the inputs that reached new code are added to the corpus
(`--keep`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ["COSCHED_KERNEL"] = "numpy"  # numba does not know what atheris puts in; results are the same
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers"), str(HERE.parents[1])]

OURS = ("cosched", "solvers", "telemetry")
MOST_KEPT = 30_000  # bytes of corpus a target


def fuzz(name: str, flags: list[str]) -> None:
    """Run in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=list(OURS)):
        from mutation import mutated
        from targets import target, tried

    way = target(name)
    seeds = way.seeds()

    def one(data: bytes) -> None:
        tried(way, data)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        return mutated(data, seed, seeds)[:max_size]

    atheris.Setup([sys.argv[0], *flags], one, custom_mutator=change, internal_libfuzzer=True)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--inner", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inner is not None:
        fuzz(args.target, args.inner)
        return 0
    out = HERE.parents[1] / "out" / "fuzz" / args.target
    (out / "work").mkdir(parents=True, exist_ok=True)
    corpus = HERE / "corpus" / args.target
    corpus.mkdir(parents=True, exist_ok=True)
    _write_seeds(args.target, out / "work")
    limits = ["-rss_limit_mb=3000", "-timeout=60", "-max_len=200000", f"-artifact_prefix={out}/"]
    again = [sys.executable, __file__, args.target, "--inner"]
    run = [
        *again,
        "-reduce_inputs=1",
        f"-max_total_time={args.seconds}",
        f"-seed={args.seed}",
        *limits,
        str(out / "work"),
        str(corpus),
    ]
    code = subprocess.run(run, check=False, cwd=HERE.parents[1]).returncode
    if args.keep:
        _keep(out / "work", corpus)
    return code


def _write_seeds(name: str, folder: Path) -> None:
    from targets import target

    way = target(name)
    for i, data in enumerate(way.seeds()):
        (folder / f"seed-{i:03d}").write_bytes(data)


def _keep(work: Path, corpus: Path) -> None:
    """Add to the corpus what reached new code, the smallest first, up to a limit."""
    found = sorted(
        (p for p in work.iterdir() if not p.name.startswith("seed-")), key=lambda p: (p.stat().st_size, p.name)
    )
    size = sum(p.stat().st_size for p in corpus.iterdir())
    for path in found:
        if 0 < path.stat().st_size <= MOST_KEPT - size and not (corpus / path.name).exists():
            (corpus / path.name).write_bytes(path.read_bytes())
            size += path.stat().st_size


if __name__ == "__main__":
    raise SystemExit(main())
