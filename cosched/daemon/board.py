"""The board of leases: what consumers were told last, and what they are to be told now.

A consumer hears of a task when its decision changes, when its share changes by more than a tenth, when it is planned in
another cell, and before half of its lease is over.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from cosched.api.messages import DECISION_TOPIC, Lease
from cosched.core.commands import Decision, Plan
from cosched.core.decisions import Needs, PlanRow, decision_message, grant, needs_of, rows_of
from cosched.core.reasons import describe
from cosched.core.state import Task
from cosched.errors import hold
from cosched.site import Site
from telemetry.messages import DecisionMessage, TaskOffer

NS: Final = 1e-9
CHANGE: Final = 0.1  # of a share: less is not worth a message
NOT_SERVED: Final = "", ""  # endpoint and key of a node whose serving the daemon knows nothing of
ENDED: Final = 10_000  # of tasks that ended or were refused, the last decision is remembered for so many

Publish = Callable[[bytes, bytes], None]


@dataclass(slots=True)
class HeldLease:
    """A task that holds a lease: the decision that it rests on, and what was published last."""

    offer: TaskOffer
    decision: Decision
    lease: Lease | None = None
    share: float = 0.0  # of the node, that it was planned with when its consumer heard of it last
    needs: Needs | None = None  # at the decision's point, once its lease was renewed


class Ended(msgspec.Struct, frozen=True):
    """What is remembered of a task that was refused or has ended."""

    offer: TaskOffer
    lease: Lease


class Board:
    """Leases by task. `publish(topic, payload)` is called whenever something is to be told."""

    def __init__(self, site: Site, publish: Publish) -> None:
        self.site = site
        self.held: dict[str, HeldLease] = {}
        self.endpoints: Mapping[str, tuple[str, str]] = {}  # node -> where clients send activations, its public key
        self._ended: OrderedDict[str, bytes] = OrderedDict()  # encoded: a third of the memory
        self._publish = publish
        self._encode = msgspec.json.Encoder().encode

    def decided(
        self, offer: TaskOffer, decision: Decision, message: DecisionMessage, plan: Plan, row: int | None
    ) -> Lease:
        """Publish a decision of a plan; return it as the consumer sees it. row: the task's in the plan."""
        lease = self._lease_of(offer, message, decision, plan, row)
        if decision.point >= 0:
            share = float(plan.share[row, 1]) if row is not None else 0.0
            self.held[offer.task] = HeldLease(offer, decision, lease, share)
        else:
            self.held.pop(offer.task, None)
            self._remember(offer, lease)
        self._tell(lease)
        return lease

    def restored(self, offer: TaskOffer, decision: Decision) -> None:
        """Take up a task of before a restart; the next plan tells of its lease."""
        self.held[offer.task] = HeldLease(offer, decision)

    def adopt(self, site: Site, tasks: Mapping[str, Task]) -> None:
        """Go on with another site: cells and nodes of what is held are counted anew."""
        self.site = site
        for name, held in self.held.items():
            if (task := tasks.get(name)) is not None:
                held.decision = replace(held.decision, point=task.point, table=task.table, cell=task.cell)
                held.needs = None

    def renew(self, plan: Plan) -> None:
        """Tell those whose share has changed or whose lease is half over; the others' leases are renewed later."""
        half_ns = round((plan.at_s + plan.valid_until_s) / 2 / NS)
        generation, held_by = plan.generation, self.held.get
        cells = [cell.id for cell in self.site.cells]
        least, most = 1 - CHANGE, 1 / (1 - CHANGE)  # of what is planned now, that what was told is still near to
        for number, (task, row) in enumerate(zip(plan.tasks, rows_of(plan), strict=True)):
            held = held_by(task)
            if held is None:
                continue
            lease = held.lease
            if lease is None:
                held.lease = self._first(_moved(held, row.cell), plan, number)
            elif lease.plan == generation or (
                lease.valid_until_ns > half_ns
                and lease.promised == row.promised
                and lease.cell == cells[row.cell]
                and least * row.prbs <= lease.weight_prb <= most * row.prbs
                and least * row.share[1] <= held.share <= most * row.share[1]
            ):
                continue
            else:
                held.lease = self._renewed(held, lease, plan, row)
            held.share = row.share[1]
            self._tell(held.lease)

    def _first(self, held: HeldLease, plan: Plan, row: int) -> Lease:
        """Lease of a task that was restored."""
        decision = replace(
            held.decision, efficiency_bps_hz=float(plan.efficiency[row]), promised=bool(plan.promised[row])
        )
        message = decision_message(self.site, plan, decision, row)
        return self._lease_of(held.offer, message, decision, plan, row)

    def _renewed(self, held: HeldLease, lease: Lease, plan: Plan, row: PlanRow) -> Lease:
        needs = _moved(held, row.cell).needs
        if needs is None:
            needs = held.needs = needs_of(self.site, held.decision)
        endpoint, key = self.endpoints.get(lease.node, NOT_SERVED)
        return msgspec.structs.replace(
            lease,
            at_ns=round(plan.at_s / NS),
            seq=plan.generation,
            plan=plan.generation,
            cell=self.site.cells[row.cell].id,
            efficiency_bps_hz=row.efficiency_bps_hz,
            promised=row.promised,
            valid_for_ms=1e3 * (plan.valid_until_s - plan.at_s),
            at_unix_s=time.time(),
            node_endpoint=endpoint,
            node_key=key,
            **grant(needs, row, plan.valid_until_s)._asdict(),
        )

    def _lease_of(
        self, offer: TaskOffer, message: DecisionMessage, decision: Decision, plan: Plan, row: int | None
    ) -> Lease:
        lease = lease_of(offer, message, decision, plan.valid_until_s - plan.at_s)
        if row is None or not message.node:
            return lease
        endpoint, key = self.endpoints.get(message.node, NOT_SERVED)
        return msgspec.structs.replace(lease, node_endpoint=endpoint, node_key=key)

    def end(self, offer: TaskOffer, reason: str, generation: int, now_ns: int) -> Lease:
        """Tell that a task holds nothing any more."""
        self.held.pop(offer.task, None)
        lease = _without_point(offer, reason, generation, now_ns)
        self._remember(offer, lease)
        self._tell(lease)
        return lease

    def shorten(self, lease_s: float, now_ns: int) -> None:
        """Let every lease run out within `lease_s`: the daemon ends."""
        until_ns = now_ns + round(lease_s / NS)
        for held in self.held.values():
            if held.lease is not None:
                shorter = min(held.lease.valid_until_ns, until_ns)
                held.lease = msgspec.structs.replace(
                    held.lease, valid_until_ns=shorter, valid_for_ms=max(0.0, (shorter - now_ns) * 1e-6)
                )
                self._tell(held.lease)

    def current(self, task: str, now_ns: int) -> Lease | None:
        """Return the task's present decision with what is left of its lease; None when it is not known."""
        if (held := self.held.get(task)) is not None and held.lease is not None:
            return _aged(held.lease, now_ns)
        ended = self.ended(task)
        return None if ended is None else ended.lease

    def ended(self, task: str) -> Ended | None:
        """Return what is remembered of a task that was refused or has ended."""
        data = self._ended.get(task)
        return None if data is None else msgspec.msgpack.decode(data, type=Ended)

    def offer(self, task: str) -> TaskOffer | None:
        """Return what a task that `current` knows has asked for."""
        known = self.held.get(task) or self.ended(task)
        return None if known is None else known.offer

    def tell(self, task: str, now_ns: int) -> None:
        """Tell the present decision of a task again, if there is one: somebody has subscribed to it."""
        if (lease := self.current(task, now_ns)) is not None:
            self._tell(lease)

    def asked_for(self, topics: Iterable[bytes]) -> list[str]:
        """Tasks that subscriptions to `topics`, which are beginnings of names, are about; each once."""
        living, found = sorted(self.held), dict[str, None]()
        for topic in sorted(topics):
            name = topic.decode("utf-8", "replace")
            if DECISION_TOPIC.startswith(name):
                found |= dict.fromkeys(living)
            elif (task := name.removeprefix(DECISION_TOPIC)) != name:
                if task in self._ended:
                    found[task] = None
                first = bisect.bisect_left(living, task)
                found |= dict.fromkeys(itertools.takewhile(lambda t: t.startswith(task), living[first:]))
        return list(found)

    def validate(self) -> None:
        """Hold what is held, and what is remembered, against the site and each other. Raises Broken."""
        n_cells, n_nodes = len(self.site.cells), len(self.site.nodes)
        for name, held in self.held.items():
            decision, lease = held.decision, held.lease
            hold(held.offer.task == decision.task == name, "the lease of", held.offer.task, "is filed as", name)
            hold(0 <= decision.point < decision.table.n_points, "task", name, "holds a lease without a point")
            hold(0 <= decision.cell < n_cells, "task", name, "is decided in cell", decision.cell, "of", n_cells)
            hold(decision.table.node[decision.point] < n_nodes, "task", name, "is decided on no node of the site")
            hold(held.needs in {None, needs_of(self.site, decision)}, "task", name, "needs what another point does")
            if lease is not None:
                hold(
                    lease.task == name and bool(lease.point), "task", name, "was told of another, or of an end:", lease
                )
                hold(lease.plan == lease.seq, "task", name, "was told plan", lease.plan, "as number", lease.seq)
        hold(len(self._ended) <= ENDED, "the ended are not forgotten:", len(self._ended))

    def _remember(self, offer: TaskOffer, lease: Lease) -> None:
        self._ended[offer.task] = msgspec.msgpack.encode(Ended(offer, lease))
        self._ended.move_to_end(offer.task)
        if len(self._ended) > ENDED:
            self._ended.popitem(last=False)

    def _tell(self, lease: Lease) -> None:
        self._publish((DECISION_TOPIC + lease.task).encode(), self._encode(lease))


def lease_of(offer: TaskOffer, message: DecisionMessage, decision: Decision, lease_s: float) -> Lease:
    """One decision as the consumer sees it."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return Lease(
        **fields,
        ue=offer.ue,
        promised=decision.promised,
        fallback=offer.fallback,
        valid_for_ms=1e3 * lease_s if decision.point >= 0 else 0.0,
        at_unix_s=time.time(),
        text=describe(decision.reason),
    )


def _moved(held: HeldLease, cell: int) -> HeldLease:
    """Note the cell that a task is planned in: its UE may have gone on to another one, and the task with it."""
    if held.decision.cell != cell:
        held.decision, held.needs = replace(held.decision, cell=cell), None
    return held


def _aged(lease: Lease, now_ns: int) -> Lease:
    left_ms = max(0.0, (lease.valid_until_ns - now_ns) * 1e-6)
    return msgspec.structs.replace(lease, valid_for_ms=left_ms)


def _without_point(offer: TaskOffer, reason: str, generation: int, now_ns: int) -> Lease:
    return Lease(
        at_ns=now_ns,
        source="cosched",
        seq=generation,
        task=offer.task,
        plan=generation,
        reason=reason,
        ue=offer.ue,
        fallback=offer.fallback,
        valid_until_ns=now_ns,
        at_unix_s=time.time(),
        text=describe(reason),
    )
