"""What runs on the cluster: an actor per node of the site, and the registry of who commands them.

Both are detached: they outlive a daemon that is restarted. What must outlive them lies in the key-value store of Ray's
GCS. Arguments and results are bytes (messages.py), so that daemon and nodes need not be of one version.
"""

from __future__ import annotations

import os
import threading
from typing import Final, TypeVar

import msgspec
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from cosched.cluster import executor
from cosched.cluster.fence import Mark, claimed, question_refusal, refusal
from cosched.cluster.holding import Holding
from cosched.cluster.messages import MALFORMED, Ack, Answer, Claim, Order, Refusal, Report, order_of
from cosched.errors import BadInput, CoschedError

NAMESPACE: Final = "cosched"  # of actors and of keys
CLAIM_KEY: Final = b"claim"

Record = TypeVar("Record", Claim, Mark)

_encode = msgspec.msgpack.Encoder().encode


def _stored(key: bytes, default: Record) -> Record:
    data = _internal_kv_get(key, namespace=NAMESPACE.encode())
    return msgspec.msgpack.decode(data, type=type(default)) if data else default


def _store(key: bytes, value: object) -> None:
    _internal_kv_put(key, _encode(value), overwrite=True, namespace=NAMESPACE.encode())


class Registry:
    """Counts epochs: one claim after the other."""

    def claim(self, asked: bytes, least: int) -> bytes:
        """(Claim before, Claim from here on), packed."""
        before = _stored(CLAIM_KEY, Claim(epoch=0))
        after = claimed(before, msgspec.msgpack.decode(asked, type=Claim), least)
        _store(CLAIM_KEY, after)
        return _encode((before, after))

    def release(self, epoch: int) -> None:
        """The daemon of `epoch` ends: whoever comes next takes nothing over from anybody."""
        present = _stored(CLAIM_KEY, Claim(epoch=0))
        if present.epoch == epoch:
            _store(CLAIM_KEY, Claim(epoch=epoch))


class NodeActor:
    """One node of the site: takes orders, has its executor carry them out, tells what is in force."""

    def __init__(self, node: str, executor_name: str) -> None:
        self._key = f"mark/{node}".encode()
        self._mark = _stored(self._key, Mark())
        claim = _stored(CLAIM_KEY, Claim(epoch=0))
        if claim.epoch > self._mark.epoch:  # a successor may have come while nobody was here
            self._mark = Mark(claim.epoch, 0, claim.who)
        self._executor_name = executor_name
        self._executor = executor.make(executor_name, node)
        self._applied = self._orders = self._refused = 0
        self._refused_who = self._failed = ""
        self._holding = Holding(self._executor)
        threading.Thread(target=self._holding.run, name="layers", daemon=True).start()  # beside the sessions

    def apply(self, data: bytes) -> bytes:
        """Take an Order; Ack or Refusal, packed."""
        try:
            order = order_of(data)
        except BadInput as error:
            return _encode(self._malformed(error))
        return _encode(self._refuse(refusal(self._mark, order), order.who) or self._take(order))

    def report(self, epoch: int, who: str) -> bytes:
        """Report, packed; Refusal for a daemon that has a successor."""
        return _encode(self._refuse(question_refusal(self._mark, epoch), who) or self._report())

    def _malformed(self, error: BadInput) -> Refusal:
        """What is no order changes nothing, and is reported."""
        self._failed = str(error)
        return Refusal(
            reason=MALFORMED, epoch=self._mark.epoch, generation=self._mark.generation, who=self._mark.who
        )  # fmt: skip

    def _refuse(self, found: Refusal | None, who: str) -> Refusal | None:
        if found is not None:
            self._refused += 1
            self._refused_who = who
        return found

    def _take(self, order: Order) -> Answer:
        mark = Mark(order.epoch, order.generation, order.who)
        if mark != self._mark:
            _store(self._key, mark)
            self._mark = mark
        self._orders += 1
        try:
            self._executor.hold(whole=order.whole, sessions=order.hold, end=order.end, step_s=order.step_s)
        except CoschedError as error:
            self._failed = str(error)
        else:
            self._failed, self._applied = "", order.generation
        self._holding.ask(order)
        return Ack(generation=order.generation)

    def _report(self) -> Report:
        holding = self._holding
        is_loading = holding.loading  # before what is in force: what ends meanwhile is in neither
        force, memory = self._executor.in_force(), self._executor.memory()
        return Report(
            generation=self._applied,
            sessions=force.sessions,
            layers=force.layers,
            loading=is_loading,
            waits=holding.waits,
            load_bytes_per_s=holding.load_bytes_per_s,
            used_bytes=force.used_bytes,
            endpoint=self._executor.endpoint,
            public_key=self._executor.public_key,
            device=memory.device,
            memory_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            failed=self._failed or holding.failed,
            orders=self._orders,
            refused=self._refused,
            refused_who=self._refused_who,
            pid=os.getpid(),
            executor=self._executor_name,
        )
