"""Decisions, shared out: one subscription in the event loop, a feed for each task that a thread follows."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from cosched.api.messages import DECISION_TOPIC, Lease

HELD: Final = 64  # decisions of one task that nobody has read: the latest count


class LeaseFeed:
    """The decisions of one task: put in by the event loop, taken out by the thread that generates."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, bytes]] = deque(maxlen=HELD)
        self._news = threading.Event()
        self.ended = asyncio.Event()  # the daemon has said that the task holds nothing any more

    def put(self, topic: bytes, payload: bytes) -> None:
        """Take a decision in, in the event loop."""
        self._waiting.append((topic, payload))
        self._news.set()
        if not msgspec.json.decode(payload, type=Lease).point:
            self.ended.set()

    def drain(self) -> Sequence[tuple[bytes, bytes]]:
        """Return what has come, in the thread."""
        self._news.clear()
        found = []
        while self._waiting:
            found.append(self._waiting.popleft())
        return found

    def wait(self, timeout_s: float) -> bool:
        """Wait for a decision, in the thread; False after `timeout_s`."""
        return self._news.wait(timeout_s)


class LeaseFeeds:
    """Feeds by task."""

    def __init__(self) -> None:
        self._feeds: dict[str, LeaseFeed] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def open(self, task: str) -> LeaseFeed:
        """Begin to collect the decisions of a task, before it is submitted."""
        feed = self._feeds[task] = LeaseFeed()
        return feed

    def close(self, task: str) -> None:
        """Forget a task."""
        self._feeds.pop(task, None)

    def put(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Hand out what came by the subscription."""
        for topic, payload in messages:
            feed = self._feeds.get(topic.decode(errors="replace").removeprefix(DECISION_TOPIC))
            if feed is not None:
                feed.put(topic, payload)
