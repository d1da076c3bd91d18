"""`cosched simulate`: a scenario file becomes a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cosched.cli.common import JsonFlag, print_json


def simulate(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (TOML); config/scenarios/ has examples.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Trace to write (MCAP).")],
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the scenario's.")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds, instead of the scenario's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw a synthetic trace from a scenario.

    3GPP TR 38.901 path loss with correlated shadowing, mobility and handover, uplink power control, and arrivals.
    One seed gives one trace.

    Example: cosched simulate config/scenarios/urban-llm.toml -o urban.mcap --seed 7 --duration 30
    """
    import msgspec

    from cosched.errors import BadInput
    from cosched.simulate.scenario import LONGEST_S, load_scenario
    from cosched.traces import simulation
    from telemetry.trace import write_trace

    loaded = load_scenario(scenario)
    seed = loaded.scenario.seed if seed is None else seed
    duration_s = loaded.scenario.duration_s if duration is None else duration
    if not 0 < duration_s <= LONGEST_S:
        raise BadInput(f"--duration {duration_s:g}: must be above 0 and at most {LONGEST_S:g} seconds")
    messages = simulation.draw_trace(loaded, seed=seed, duration_s=duration_s)
    write_trace(output, messages)
    drawn = simulation.summary(messages, duration_s)
    if as_json:
        head = {"v": 1, "path": str(output), "scenario": loaded.scenario.name, "seed": seed, "duration_s": duration_s}
        print_json(head | msgspec.structs.asdict(drawn))
        return
    typer.echo(
        f"{output}: scenario {loaded.scenario.name}, site {loaded.site.name}, seed {seed}, {duration_s:g} s\n"
        f"  {drawn.ues} UEs, {drawn.reports} reports, {drawn.handovers} handovers\n"
        f"  uplink efficiency {drawn.efficiency_p5:.2f} / {drawn.efficiency_p50:.2f} / {drawn.efficiency_p95:.2f} "
        "bit/s/Hz (5th, 50th, 95th percentile)\n"
        f"  {drawn.tasks} tasks ({drawn.sessions} LLM sessions, {drawn.clips} video clips), {drawn.rate_per_s:.2f}/s"
    )
