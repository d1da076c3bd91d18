"""A node that acknowledges what it does not do: on edge1, a session whose id begins with `lost` is never served."""

from __future__ import annotations

from collections.abc import Sequence

from cosched.cluster.executor import Ledger
from cosched.cluster.messages import Session


class Forgetful(Ledger):
    def hold(self, *, whole: bool, sessions: Sequence[Session], end: Sequence[str], step_s: float = 0.0) -> None:
        kept = [s for s in sessions if not (self.node == "edge1" and s.task.startswith("lost"))]
        super().hold(whole=whole, sessions=kept, end=end, step_s=step_s)
