"""What can happen, by the script's names: each acts on the world once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from sim_life import NS
from sim_messages import absurd, garbage, request, work
from sim_network import arrive, bus, requested, verb
from sim_script import POLICIES, Step, pick

from cosched.api.messages import DECISION_TOPIC
from cosched.children.packing import pack, solve_packed
from cosched.children.pool import ask_of
from cosched.core.commands import Solve
from cosched.core.layers import NodeLayers
from cosched.daemon.mode import IllegalMove, Move
from cosched.daemon.store import Store
from cosched.errors import BadInput, hold
from solvers import check, steps
from solvers.solution import Solution
from telemetry.bus import Frame
from telemetry.messages import (
    CellReport,
    NodeReport,
    TaskProgress,
    TaskTiming,
    UeReport,
    UeReportBatch,
)

if TYPE_CHECKING:
    from sim_world import World

N_UES = 8

# --- radio, nodes, runtimes -----------------------------------------------------------------------------------------


def stamp(world: World) -> dict[str, Any]:
    return {"at_ns": world.now_ns, "seq": world.number()}


def cell_of(world: World, ue: int, x: float = 0.0) -> str:
    cells = world.life.engine.plant.site.cells
    return cells[(ue + int(x)) % len(cells)].id


def radio(world: World, step: Step) -> None:
    ue = pick(step.b, N_UES)
    value = None if step.c < 0.05 else 0.3 + 5 * step.c
    bus(
        world,
        step,
        UeReport(**stamp(world), source=f"ran/{ue}", ue=f"ue{ue}", cell=cell_of(world, ue), ul_efficiency_bps_hz=value),
    )


def handover(world: World, step: Step) -> None:
    ue = pick(step.b, N_UES)
    cell = "elsewhere" if step.c < 0.1 else cell_of(world, ue, 2 * step.c)
    bus(world, step, UeReport(**stamp(world), source=f"ran/{ue}", ue=f"ue{ue}", cell=cell, ul_efficiency_bps_hz=2.0))


def batch(world: World, step: Step) -> None:
    ues = range(1 + pick(step.b, N_UES))
    values = tuple(None if (u + 10 * step.c) % 7 < 1 else 0.5 + (u * step.c * 10) % 5 for u in ues)
    message = UeReportBatch(
        **stamp(world), source="ran", ue=tuple(f"ue{u}" for u in ues), cell=tuple(cell_of(world, u) for u in ues),
        ul_efficiency_bps_hz=values,
    )  # fmt: skip
    bus(world, step, message)


def strangers(world: World, step: Step) -> None:
    """UEs that nobody has heard of, many at once."""
    world.faults["invented UEs"] += 1
    n = 1 + pick(step.b, 60)
    names = tuple(f"x{world.number()}" for _ in range(n))
    cells, values = (cell_of(world, 0),) * n, (2.0 * step.c,) * n
    bus(world, step, UeReportBatch(**stamp(world), source="x", ue=names, cell=cells, ul_efficiency_bps_hz=values))


def cell(world: World, step: Step) -> None:
    full = 1.0 if step.c > 0.97 else 0.5 * step.c * step.c
    bus(
        world,
        step,
        CellReport(**stamp(world), source="cell", cell=cell_of(world, pick(step.b, 2)), background_ul_fraction=full),
    )


def node(world: World, step: Step) -> None:
    nodes = world.life.engine.plant.site.nodes
    message = NodeReport(
        **stamp(world), source="node", node=nodes[pick(step.b, len(nodes))].id, up=step.c < 0.97,
        background_fraction=0.4 * step.c * step.c,
    )  # fmt: skip
    bus(world, step, message)


def one_of(world: World, x: float) -> str:
    """A task that lives, one that is being decided, or one that nobody knows."""
    names = [*world.life.engine.trackers, *world.life.engine.waiting]
    return names[pick(x, len(names))] if names and x < 0.97 else "nobody"


def progress(world: World, step: Step) -> None:
    task = one_of(world, step.b)
    done = world.done[task] = world.done.get(task, 0) + 1 + int(4 * step.c)
    lie = -3 if step.c > 0.98 else 0
    message = TaskProgress(
        **stamp(world), source="r", task=task, done=max(0, done + lie * done), decoding_s=0.1 * done * step.a,
        late=int(done * (step.a > 0.95)), finished=step.c > 0.9,
    )  # fmt: skip
    bus(world, step, message)


def timing(world: World, step: Step) -> None:
    task = one_of(world, step.b)
    held = world.life.engine.core.state.tasks.get(task)
    point = held.table.point_ids[held.point] if held is not None and step.c > 0.05 else "no-such-point"
    message = TaskTiming(
        **stamp(world), source="r", task=task, point=point, tokens=1 + int(20 * step.c),
        device_prefill_s=0.01 + step.a, device_token_s=0.001 + 0.1 * step.c, node_prefill_s=0.01 + step.c,
        node_token_s=0.001 + 0.1 * step.a,
    )  # fmt: skip
    bus(world, step, message)


# --- clients --------------------------------------------------------------------------------------------------------


def submit_args(
    step: Step, task: str, work_of: Callable[[float, float, float], dict[str, Any]] = work
) -> dict[str, Any]:
    ue = "stranger" if step.a > 0.97 else f"ue{pick(step.c, N_UES)}"
    return {
        "task": task, "ue": ue, "work": work_of(step.a, step.b, step.c),
        "weight": 1.0 if step.b < 0.7 else 0.2 + 5 * step.c, "fallback": ("local", "drop", "keep")[pick(step.a, 3)],
    }  # fmt: skip


def submit(world: World, step: Step) -> None:
    """Half of the ids are used again and again."""
    task = f"again{pick(step.a * 7 % 1, 6)}" if step.b < 0.5 else f"t{world.number()}"
    verb(world, step, "submit", submit_args(step, task))


def absurd_submit(world: World, step: Step) -> None:
    world.faults["absurd submit"] += 1
    verb(world, step, "submit", submit_args(step, f"absurd{world.number()}", absurd))


def flood(world: World, step: Step) -> None:
    world.faults["flood"] += 1
    payloads = []
    for i in range(5 + pick(step.a, 30)):
        one = step._replace(a=(step.a * (i + 1)) % 1, b=(step.b * (i + 3)) % 1, c=(step.c * (i + 7)) % 1)
        payloads.append(
            request("submit", str(world.number()), submit_args(one, f"flood{world.number()}"), as_json=step.b < 0.5)
        )
    requested(world, payloads)


def resubmit(world: World, step: Step) -> None:
    """The same again, or another task under the id of one that lives."""
    engine, task = world.life.engine, one_of(world, step.b)
    held = engine.trackers.get(task) or engine.waiting.get(task)
    if held is None:
        return
    world.faults["resubmit"] += 1
    offer = held.offer
    args = {"task": task, "ue": offer.ue, "work": offer.work, "weight": offer.weight, "fallback": offer.fallback}
    if step.c > 0.5:
        args["weight"] = offer.weight + 1
    payload = msgspec.msgpack.encode({"v": 1, "id": task, "verb": "submit", "args": args})
    requested(world, [payload] * (1 + pick(step.a, 3)))


def release(world: World, step: Step) -> None:
    verb(world, step, "release", {"task": one_of(world, step.b)})


def steal(world: World, step: Step) -> None:
    """Somebody releases what is not his and asks for it under the same id at once."""
    world.faults["release of others'"] += 1
    task = one_of(world, step.b)
    payloads = [
        request("release", "1", {"task": task}, as_json=True),
        request("submit", "2", submit_args(step, task), as_json=False),
        request("release", "3", {"task": task}, as_json=True),
    ]
    if step.c < 0.5:
        world.life.tick()  # what it drops is decided later
    requested(world, payloads)


def show(world: World, step: Step) -> None:
    verb(world, step, "show", {"task": one_of(world, step.b)})


def questions(world: World, step: Step) -> None:
    world.faults["question"] += 1
    if step.b < 0.5:
        verb(world, step, "explain", {"task": one_of(world, step.c)})
        return
    args = {"more_prbs": {"cell0": pick(step.c, 40) - 10}, "submit": [submit_args(step, f"whatif{world.number()}")]}
    verb(world, step, "whatif", args)


def subscribe(world: World, step: Step) -> None:
    topics = (DECISION_TOPIC.encode(), (DECISION_TOPIC + one_of(world, step.b)).encode(), b"", b"\xff\xfe", b"status")
    world.witness.is_greeting = True
    try:
        board = world.life.engine.board
        for task in board.asked_for([topics[pick(step.a, len(topics))]]):
            board.tell(task, world.now_ns)
    finally:
        world.witness.is_greeting = False


def garbage_control(world: World, step: Step) -> None:
    world.faults["garbage request"] += 1
    requested(world, [garbage(step.a, step.b, step.c)])


def garbage_bus(world: World, step: Step) -> None:
    world.faults["garbage frame"] += 1
    topics = (b"ran.ue", b"ran.ue.batch", b"ran.cell", b"compute.node", b"task", b"task.timing", b"link", b"", b"\xff")
    arrive(world, [Frame(topics[pick(step.b, len(topics))], garbage(step.a, step.b, step.c), "")])


# --- nodes, operators, machines ---------------------------------------------------------------------------------------


def bar(world: World, step: Step) -> None:
    """Nodes are lost, or back."""
    world.faults["node lost or back"] += 1
    nodes = [n.id for n in world.life.engine.plant.site.nodes]
    gone = tuple(n for i, n in enumerate(nodes) if (step.a, step.b)[i % 2] < 0.4)
    world.life.engine.bar(gone if step.c < 0.5 else ())


def shrink(world: World, step: Step) -> None:
    world.faults["node shrunk"] += 1
    nodes = world.life.engine.plant.site.nodes
    short = {n.id: 2e9 * step.b * step.c for n in nodes[: 1 + pick(step.a, len(nodes))]}
    if step.b > 0.9:
        short["no-such-node"] = 1e12
    world.life.engine.shrink(short if step.c < 0.6 else {})


def place(world: World, step: Step) -> None:
    """What nodes say that they hold, and go on holding; a lie now and then."""
    world.faults["layers of a node"] += 1
    nodes = world.life.engine.plant.site.nodes
    first = (None, {"llama-3-8b": 0}, {"llama-3-8b": int(32 * step.b)}, {})[pick(step.a, 4)]
    keeps = first if step.c < 0.7 else {}
    told = tuple(NodeLayers(node=n.id, holds=first, keeps=keeps) for n in nodes[: 1 + pick(step.c, len(nodes))])
    world.life.engine.placed(told if step.b < 0.8 else ())


def policy(world: World, step: Step) -> None:
    world.faults["policy switch"] += 1
    verb(world, step, "policy", {"policy": POLICIES[pick(step.b, len(POLICIES))]})


def drain(world: World, step: Step) -> None:
    world.faults["drain"] += 1
    verb(world, step, "drain")
    world.at(1 + 3 * step.b, "resume", lambda: requested(world, [request("resume", "r", None, as_json=True)]))


def reload(world: World, step: Step) -> None:
    world.faults["reload"] += 1
    changes = (
        ("core.z", f"{0.2 + step.b:.2f}"), ("core.lease_s", f"{0.3 + 0.5 * step.b:.2f}"),
        ("capture.max_age_s", f"{1 + 3 * step.b:.1f}"), ("policy", f'"{POLICIES[pick(step.b, len(POLICIES))]}"'),
        ("core.period_s", "0.0001"), ("core.no_such_key", "1"),
        ("capture.max_bytes", "200000"), ("core.objective", '"latency"'), ("solver.budget_s", "0.2"),
    )  # fmt: skip
    before = dict(world.settings)
    world.settings |= dict([changes[pick(step.c, len(changes))]])
    world.rewrite()
    try:
        verb(world, step._replace(fate=""), "reload")
    finally:  # a crash too
        if step.c > 4 / 9 and step.c < 6 / 9:  # it is refused: the file is put right again
            world.settings = before
            world.rewrite()


def pause(world: World, step: Step) -> None:
    """The machine stands still; messages wait for it."""
    world.faults["pause"] += 1
    world.pass_to(world.now_ns + round(1e9 * (0.5 + 14 * step.b)))


def wall(world: World, step: Step) -> None:
    world.faults["wall clock jumps"] += 1
    world.wall_ns = max(0, world.wall_ns + round(1e9 * (step.b - 0.5) * 10 ** (9 * step.c)))


def silence(world: World, _: Step) -> None:
    """No message came for a while (sim_world.py waits), and ticks went on."""
    world.faults["silence"] += 1


def disk(world: World, step: Step) -> None:
    """It refuses all, fills, or tears, for a while."""
    room = -1 if step.b < 0.4 else int(9000 * step.c)
    world.faults["disk refuses" if room < 0 else "disk fills and tears"] += 1
    world.disk.room = room
    world.at(0.05 + 3 * step.a, "disk is well", lambda: setattr(world.disk, "room", None))


def solver(world: World, step: Step) -> None:
    world.solver = ("slow", "dead", "wrong", "late", "wrong", "double")[pick(step.b, 6)]
    world.at(0.05 + 0.5 * step.c, "solver is well", lambda: setattr(world, "solver", "right"))


def kill(world: World, step: Step) -> None:
    world.faults["kill -9" if step.b < 0.5 else "power cut"] += 1
    world.die(b"" if step.b < 0.5 else bytes(1 + int(5000 * step.c)))


def fuse(world: World, step: Step) -> None:
    """The process ends at one of the next places where it can."""
    world.fuse = int(30 * step.b * step.b)


def stop(world: World, _: Step) -> None:
    world.faults["stop"] += 1
    world.stop()


def reboot(world: World, step: Step) -> None:
    """The machine boots: its monotonic clock begins anew, its wall clock may be wrong."""
    world.faults["reboot"] += 1
    world.die()
    world.boot = f"boot-{world.number()}"
    world.now_ns = round(5e9 + 1e9 * step.b)
    world.witness.now_ns = world.now_ns
    world.wall_ns += round((30 + 600 * step.b) * 1e9)
    if step.c < 0.3:
        world.wall_ns = round(1e9 * step.c)  # no battery
    elif step.c > 0.8:
        world.wall_ns += round(1e17 * step.c)


def second(world: World, _: Step) -> None:
    world.faults["second daemon"] += 1
    try:
        Store(world.disk.state / "state.sqlite")
    except BadInput:
        return
    hold(False, "a second daemon gets the state")


def fence(world: World, step: Step) -> None:
    """Another daemon takes the cluster over; this one is stopped after a while."""
    try:
        world.life.modes.move(Move.FENCE, world.now_ns * NS)
    except IllegalMove:
        return
    world.faults["fenced"] += 1
    world.at(0.5, "stop", lambda: stop(world, step))


# --- solvers ----------------------------------------------------------------------------------------------------------


def answer(world: World, command: Solve) -> None:
    """A solve comes to its end, one way or another."""
    life = world.life
    if life is None or world.solves.pop(command.request, None) is not command:
        return
    how = "right" if command.policy.solver == "local" else world.solver
    if how == "slow":
        world.faults["solver slow"] += 1
        world.solves[command.request] = command
        world.at(0.3, "answer", lambda: hand_over(world, command, "right"))
        return
    if how == "late":
        world.faults["solver over its budget"] += 1
        world.solves[command.request] = command
        world.at(0.5, "answer", lambda: hand_over(world, command, "late"))
        return
    hand_over(world, command, how)


def hand_over(world: World, command: Solve, how: str) -> None:
    world.solves.pop(command.request, None)
    engine = world.life.engine
    if how in {"dead", "late"}:
        world.faults["solver dead"] += how == "dead"
        engine.solved(command.request, None, "its process died" if how == "dead" else "over its budget of 500 ms")
        return
    if engine.core.asked(command.request) is None:
        engine.solved(command.request, None, "")
        return
    world.reserved = not engine.core._open[1].statistical  # of the policy that asked first, not of its substitutes
    found = solve_packed(pack(ask_of(command)))
    if found.solution is None:
        engine.solved(command.request, None, found.error)
        return
    at = steps.at(command.problem, found.solution.step_s, found.solution.period_s)
    world.background = at.background  # with the reads of who is held
    solution = wrong(world, command, found.solution) if how == "wrong" else found.solution
    for _ in range(1 + (how == "double")):
        engine.solved(command.request, solution, "")
    world.faults["solver answers twice"] += how == "double"


def wrong(world: World, command: Solve, right: Solution) -> Solution:
    """An answer that is no plan for its problem; the right one where this one happens to be."""
    n = world.number()
    share = right.share
    kinds = (
        replace(right, share=np.full_like(share, np.nan)),
        replace(right, share=share * 50),
        replace(right, chosen=right.chosen + command.problem.n_points),
        replace(right, chosen=right.chosen[::-1].copy(), share=share[::-1].copy()),
        replace(right, chosen=right.chosen[:-1], share=share[:-1], promised=right.promised[:-1]),
        replace(right, promised=np.ones_like(right.promised)),
        replace(right, prices=right.prices - 1.0),
        replace(right, chosen=right.chosen.astype(np.float64)),
        replace(right, share=-share),
        replace(right, certificate=replace(right.certificate, value=np.inf)),
        replace(right, step_s=np.full_like(right.step_s, np.nan)),
        replace(right, step_s=right.step_s[:-1]),
        replace(right, step_s=right.step_s / 20),
        replace(right, step_s=right.step_s * 20),
        replace(right, step_s=np.full_like(right.step_s, np.inf)),
        replace(right, step_s=np.zeros(0)),
        replace(right, period_s=np.full_like(right.period_s, np.nan)),
        replace(right, period_s=right.period_s[:-1]),
        replace(right, period_s=right.period_s / 20),
        replace(right, period_s=-right.period_s),
    )
    made = kinds[n % len(kinds)]
    is_typed = made.chosen.dtype.kind == "i"
    if is_typed and not check.verify(command.problem, made, dual=False, tolerance=1e-5):
        return right
    world.faults["solver wrong"] += 1
    return made


def steady(world: World, _: Step) -> None:
    world.life.modes.move(Move.READY, world.now_ns * NS)


ACTS: dict[str, Callable[..., None]] = {
    "radio": radio, "batch": batch, "submit": submit, "progress": progress, "release": release, "cell": cell,
    "node": node, "timing": timing, "show": show, "subscribe": subscribe, "handover": handover,
    "list": lambda world, step: verb(world, step, "list", {"prefix": "again" if step.b < 0.5 else ""}),
    "status": lambda world, step: verb(world, step, "status"),
    "policies": lambda world, step: verb(world, step, "policy"),
    "flood": flood, "garbage-bus": garbage_bus, "garbage-control": garbage_control, "absurd": absurd_submit,
    "resubmit": resubmit, "steal": steal, "bar": bar, "shrink": shrink, "place": place, "policy": policy,
    "drain": drain, "reload": reload, "pause": pause, "wall": wall, "disk": disk, "solver": solver, "kill": kill,
    "fuse": fuse, "stop": stop, "reboot": reboot, "second": second, "fence": fence, "questions": questions,
    "silence": silence, "strangers": strangers, "answer": answer, "steady": steady,
}  # fmt: skip
