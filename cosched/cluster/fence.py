"""Who may command a node: the daemon of the largest epoch, with generations that do not go back. Pure."""

from __future__ import annotations

import msgspec

from cosched.cluster.messages import OLD_EPOCH, OLD_GENERATION, OTHER_VERSION, VERSION, Claim, Order, Refusal


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The highest (epoch, generation) that a node has taken, and whose it was."""

    epoch: int = 0
    generation: int = 0
    who: str = ""


def refusal(mark: Mark, order: Order) -> Refusal | None:
    """Why an order is not taken, None when it is. An order may be sent again: its generation is then the mark's."""
    if order.v != VERSION:
        return _refuse(mark, OTHER_VERSION)
    if order.epoch < mark.epoch:
        return _refuse(mark, OLD_EPOCH)
    if order.epoch == mark.epoch and order.generation < mark.generation:
        return _refuse(mark, OLD_GENERATION)
    return None


def question_refusal(mark: Mark, epoch: int) -> Refusal | None:
    """Why a daemon of `epoch` is not told what is in force: an old one learns of its successor this way too."""
    return _refuse(mark, OLD_EPOCH) if epoch < mark.epoch else None


def claimed(present: Claim, asked: Claim, least: int) -> Claim:
    """Who commands after `asked` has asked for it: it does, unless it already had an epoch that is no longer the last.

    asked.epoch: 0 for a daemon that has just started, else the epoch that it has. least: the new one is above it, so
    that epochs grow for a daemon even where the cluster has forgotten them.
    """
    if asked.epoch:
        return asked if asked.epoch >= present.epoch else present
    return msgspec.structs.replace(asked, epoch=max(present.epoch, least) + 1)


def _refuse(mark: Mark, reason: str) -> Refusal:
    return Refusal(reason=reason, epoch=mark.epoch, generation=mark.generation, who=mark.who)
