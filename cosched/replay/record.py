"""A replay as a recording: the trace's messages with one policy's decisions between them."""

from __future__ import annotations

from collections.abc import Sequence

from cosched.core.commands import Plan
from cosched.core.decisions import decision_message
from cosched.core.policy import Policy
from cosched.core.settings import Settings
from cosched.replay.replayer import Replayer, Workbook
from telemetry.messages import Message


def recorded(messages: Sequence[Message], book: Workbook, policy: Policy, settings: Settings) -> list[Message]:
    """Replay and return all messages with a `decision` wherever a task was admitted, moved, refused or let go."""
    decisions: list[Message] = []

    def keep(plan: Plan) -> None:
        rows = {name: i for i, name in enumerate(plan.tasks)}
        decisions.extend(decision_message(book.site, plan, d, rows.get(d.task)) for d in plan.decisions)

    Replayer(book, policy, settings, watch=keep).run()
    return [*messages, *decisions]
