"""The door: a process of its own that accepts connections for the daemon and carries their bytes to its sockets.

libzmq takes every connection that comes, aborts the process when descriptors run out (ipc_listener.cpp), and aborts it
when a peer is gone whose queue was full and whose last bytes held a PING (stream_engine_base.cpp). It cannot end one
connection, nor bound what a subscriber has it remember. So it never sees a stranger's socket: here connections are
counted, capped and cut, and the daemon's end of one is only ever half closed, until libzmq has read all and closes it.

cosched/daemon/gate.py starts it: `python -m cosched.daemon.children.door SPEC`. On stdin come lines `cut NAME`; its end
is ours. On stdout go counts as JSON lines. Nothing but the standard library is imported: it has to be up at once, and
stay small.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter, deque
from typing import Any, Final

CHUNK: Final = 1 << 16  # bytes carried in one go: then others have their turn
STALLED_S: Final = 10.0  # a peer that takes nothing of what waits for it for so long is cut
KEEPALIVE_S: Final = 10, 5, 3  # of tcp: silence, seconds between probes, probes; a dead peer is gone in half a minute
USER_TIMEOUT_MS: Final = 20_000  # of tcp: what was sent and is not acknowledged for so long ends the connection
CROWD: Final = 0.75  # most of a socket's connections that one uid (ipc) or one address (tcp) may have
ACCEPTED: Final = 20  # connections taken in or turned away in one go; those behind them wait for a moment
TURN_S: Final = 0.05  # ... of this length
FREE_BYTES: Final = 1_024  # of a peer that are never held up: a handshake and some subscriptions
PACE_BURST_S: Final = 0.5  # a peer that has sent nothing for so long may send as much at once
FAST_S: Final = 1.0  # a peer that is held up again and again for so long sends faster than it is read: one count
REPORT_S: Final = 0.25  # between two reports of counts
ENDING_S: Final = 1.0  # what is under way when the daemon ends has this long

IN, OUT = select.EPOLLIN, select.EPOLLOUT
FULL: Final = "no connection left"
CROWDED: Final = "too many connections from one peer"
TOPICS: Final = "too many subscriptions"
SLOW: Final = "takes nothing of what waits for it"
FAST: Final = "sends faster than it is read"
CUT: Final = "cut: a key was revoked"


class Entry:
    """One listening socket of a daemon's socket `name`; entries of one name share their count of connections.

    pace_bps: how fast each connection is read, after a burst of PACE_BURST_S, 0 = as it comes; all_pace_bps: how fast
    those together that would be read faster. What is not read stays with the peer.

    burst_bytes, rate_bps: what a peer may send in all, 0 = any amount; held_bytes: what all together may have sent that
    are connected; all_bps: how fast all together are read, after a burst of burst_bytes. A subscriber's bytes are
    subscriptions, which the daemon has to remember while he is connected, and to hear of again when he goes.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec["name"]
        self.listener = socket.socket(fileno=spec["fd"])
        self.listener.setblocking(False)
        self.to: str = spec["to"]
        self.guarded: bool = spec["guarded"]
        self.burst_bytes: float = spec.get("burst_bytes", 0)
        self.rate_bps: float = spec.get("rate_bps", 0)
        self.held_bytes: float = spec.get("held_bytes", 0)
        self.all_bps: float = spec.get("all_bps", 0)
        self.pace_bps: float = spec.get("pace_bps", 0)
        self.all_pace_bps: float = spec.get("all_pace_bps", 0)
        self.fast: Counter[str] = Counter()  # connections that are read more slowly than they send, by who
        self.tokens = self.burst_bytes
        self.at_s = time.monotonic()
        self.chunk = FREE_BYTES if self.all_bps else CHUNK

    def refill(self, now_s: float) -> bool:
        """Whether there is something left to be read of all."""
        self.tokens = min(self.burst_bytes, self.tokens + self.all_bps * (now_s - self.at_s))
        self.at_s = now_s
        return bool(self.tokens >= 0)

    def share_bps(self, who: str) -> float:
        """How fast a connection is read: what is there for all is shared by peers, and a peer's by its connections."""
        return min(self.pace_bps, self.all_pace_bps / max(1, len(self.fast)) / max(1, self.fast[who]))


class Relay:
    """One connection: the peer's socket, ours to the daemon, and what of either waits for the other.

    up: towards the daemon. `peer` is None when the peer has gone or was cut; then what comes down is dropped.
    """

    __slots__ = ("born_s", "down", "entry", "fast_s", "got", "held_s", "inner", "is_held_up", "is_joined", "is_over",
                 "masks", "paid_s", "peer", "stalled_s", "up", "who")  # fmt: skip

    def __init__(self, entry: Entry, peer: socket.socket, who: str, now_s: float) -> None:
        self.entry, self.who, self.born_s = entry, who, now_s
        self.peer: socket.socket | None = peer
        self.inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.up = self.down = b""
        self.got = 0  # bytes of the peer's
        self.is_joined = False  # to the daemon
        self.is_held_up = False  # not read until there are tokens
        self.is_over = False  # the daemon was told that no more comes
        self.stalled_s = 0.0  # since when `down` waits
        self.paid_s = now_s  # until then it has been read, at its pace
        self.fast_s = self.held_s = -FAST_S  # since when it is read more slowly than it sends, and when it last was
        self.masks = [0, 0]  # that epoll has, of peer and inner


class Door:
    """All links of all entries, in one loop."""

    def __init__(self, entries: list[Entry], caps: dict[str, int]) -> None:
        self.entries, self.caps = entries, caps
        self.epoll = select.epoll()
        self.links: dict[int, Relay] = {}  # by both descriptors
        self.open: Counter[str] = Counter()  # connections by name
        self.crowds: Counter[tuple[str, str]] = Counter()  # by name and who
        self.held: Counter[str] = Counter()  # bytes that connected peers have sent, of entries that bound them
        self.refused: Counter[tuple[str, str]] = Counter()  # by name and reason
        self.muted: list[Entry] = []  # not listened to for a turn
        self.unjoined: deque[Relay] = deque()  # the daemon's backlog was full
        self.stalled: set[Relay] = set()
        self.held_up: list[Relay] = []
        self.listening = {entry.listener.fileno(): entry for entry in entries}
        for fd in self.listening:
            self.epoll.register(fd, IN)

    # --- accepting ----------------------------------------------------------------------------------------------

    def accept(self, entry: Entry, now_s: float) -> None:
        """Take in, or turn away, who waits at an entry."""
        for _ in range(ACCEPTED):
            try:
                peer, address = entry.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # gone again, or no descriptor left: both pass
                self.refused[entry.name, FULL] += error.errno in {errno.EMFILE, errno.ENFILE}
                break
            who = _tune(peer, address)
            if reason := self._full(entry.name, who):
                self.refused[entry.name, reason] += 1
                peer.close()
            else:
                self._join(Relay(entry, peer, who, now_s))
        self.epoll.unregister(entry.listener.fileno())
        self.muted.append(entry)

    def _full(self, name: str, who: str) -> str:
        cap = self.caps[name]
        if self.open[name] >= cap:
            return FULL
        return CROWDED if self.crowds[name, who] >= max(1, int(CROWD * cap)) else ""

    def _join(self, link: Relay) -> None:
        """Connect to the daemon; where its backlog is full, later."""
        if link.peer is not None and link.peer.fileno() not in self.links:
            self.links[link.peer.fileno()] = self.links[link.inner.fileno()] = link
            self.open[link.entry.name] += 1
            self.crowds[link.entry.name, link.who] += 1
        try:
            link.inner.connect(link.entry.to)
        except BlockingIOError:
            self.unjoined.append(link)
            return
        except OSError:  # the daemon is ending
            self.end(link)
            return
        link.is_joined = True
        self.watch(link)

    # --- carrying -----------------------------------------------------------------------------------------------

    def happened(self, link: Relay, fd: int, events: int, now_s: float) -> None:
        """Carry the way that can go on; a hang-up is looked into both ways."""
        is_up = (fd == link.inner.fileno()) == bool(events & OUT)
        if events & ~(IN | OUT) or events == IN | OUT:
            self.move(link, now_s)
        elif is_up:
            self.move(link, now_s, down=False)
        else:
            self.move(link, now_s, up=False)

    def move(self, link: Relay, now_s: float, *, up: bool = True, down: bool = True) -> None:
        """Carry what can be carried, a chunk each way."""
        if up:
            try:
                self._up(link, now_s)
            except OSError:  # the daemon takes no more; what it has said before is still there
                link.up, link.is_over = b"", True
        if down and self._down(link, now_s):
            self.end(link)
        else:
            self.watch(link)

    def _up(self, link: Relay, now_s: float) -> None:
        if link.up:
            link.up = _send(link.inner, link.up)
        if link.up or link.is_over:
            return
        if link.is_held_up and link.peer is not None:
            return
        if link.peer is not None:
            if (link.entry.tokens < 0 and link.got >= FREE_BYTES) or link.paid_s > now_s:
                self._hold_up(link, now_s)
                return
            data = _receive(link.peer, link.entry.chunk)
            if data is None:
                return
            self._pace(link, len(data), now_s)
            if data and (reason := self._beyond(link, len(data), now_s)):
                self.cut(link, reason)
            elif data:
                link.up = _send(link.inner, data)
                return
            else:
                self._leave(link)
        link.inner.shutdown(socket.SHUT_WR)  # never more than half: see above
        link.is_over = True

    def _pace(self, link: Relay, size: int, now_s: float) -> None:
        """Charge what was read: as time in which its peer has had its part."""
        if link.entry.pace_bps:
            link.paid_s = max(link.paid_s, now_s - PACE_BURST_S) + size / link.entry.share_bps(link.who)

    def _hold_up(self, link: Relay, now_s: float) -> None:
        """Leave what comes with its peer for a while; one that goes on too fast is counted once in FAST_S."""
        link.is_held_up = True
        self.held_up.append(link)
        if link.paid_s <= now_s:
            return
        if now_s - link.held_s >= FAST_S:
            link.fast_s = now_s
        elif now_s - link.fast_s >= FAST_S:
            link.fast_s = now_s
            self.refused[link.entry.name, FAST] += 1
        link.held_s = now_s

    def _beyond(self, link: Relay, size: int, now_s: float) -> str:
        """Why a peer may not send so much more, "" when it may."""
        entry = link.entry
        if not entry.burst_bytes:
            return ""
        entry.tokens -= size
        link.got += size
        self.held[entry.name] += size
        mine = link.got > entry.burst_bytes + min(entry.rate_bps * (now_s - link.born_s), entry.held_bytes)
        fair = entry.burst_bytes / 8
        return TOPICS if mine or (self.held[entry.name] > entry.held_bytes and link.got > fair) else ""

    def _down(self, link: Relay, now_s: float) -> bool:
        """Carry from the daemon to the peer; True when the daemon has closed and all is carried."""
        peer = link.peer
        if link.down and peer is not None:
            before, link.down = len(link.down), _send_or_drop(peer, link.down)
            if len(link.down) < before:
                link.stalled_s = now_s
        if not link.down:
            data = _receive(link.inner)
            if data == b"":
                return True
            if data and peer is not None:
                link.down, link.stalled_s = _send_or_drop(peer, data), now_s
        (self.stalled.add if link.down else self.stalled.discard)(link)
        return False

    def watch(self, link: Relay) -> None:
        """Tell epoll what is waited for. A socket of which nothing is, is not watched: its hang-up would be told."""
        readable = link.peer is not None and link.is_joined and not (link.up or link.is_over or link.is_held_up)
        peer = (IN if readable else 0) | (OUT if link.down else 0)
        inner = (IN if not link.down else 0) | (OUT if link.up or (link.peer is None and not link.is_over) else 0)
        for i, (sock, mask) in enumerate(((link.peer, peer), (link.inner, inner))):
            before = link.masks[i]
            if sock is None or mask == before:
                continue
            if not before:
                self.epoll.register(sock.fileno(), mask)
            elif not mask:
                self.epoll.unregister(sock.fileno())
            else:
                self.epoll.modify(sock.fileno(), mask)
            link.masks[i] = mask

    # --- ends ---------------------------------------------------------------------------------------------------

    def _leave(self, link: Relay) -> None:
        """Close the peer's end; the daemon's stays until libzmq has read all."""
        peer = link.peer
        if peer is None:
            return
        if link.masks[0]:
            self.epoll.unregister(peer.fileno())
        link.masks[0] = 0
        self.links.pop(peer.fileno(), None)
        peer.close()
        link.peer, link.down = None, b""
        self.stalled.discard(link)

    def cut(self, link: Relay, reason: str) -> None:
        """Have the peer go."""
        self.refused[link.entry.name, reason] += 1
        self._leave(link)
        link.up = b""

    def cut_all(self, name: str, now_s: float) -> None:
        """Have all go that came with a key: who is still allowed comes again, and is asked again."""
        links = [k for k in set(self.links.values()) if k.entry.name == name and k.entry.guarded]
        for link in [k for k in links if k.peer is not None]:
            self.cut(link, CUT)
            if link.is_joined:
                self.move(link, now_s)

    def end(self, link: Relay) -> None:
        """Close both ends."""
        self._leave(link)
        if link.masks[1]:
            self.epoll.unregister(link.inner.fileno())
            link.masks[1] = 0
        self.links.pop(link.inner.fileno(), None)
        link.inner.close()
        name = link.entry.name
        self.open[name] -= 1
        self.crowds[name, link.who] -= 1
        if not self.crowds[name, link.who]:
            del self.crowds[name, link.who]
        if link.entry.burst_bytes:
            self.held[name] -= link.got

    # --- time ---------------------------------------------------------------------------------------------------

    def turn(self, now_s: float) -> None:
        """What is due every now and then."""
        muted, self.muted = self.muted, []
        for entry in muted:
            self.epoll.register(entry.listener.fileno(), IN)
        for _ in range(len(self.unjoined)):
            link = self.unjoined.popleft()
            self._join(link) if link.peer is not None else self.end(link)
        held_up, self.held_up = self.held_up, []
        for entry in self.entries:
            entry.fast = Counter(k.who for k in held_up if k.entry is entry and k.paid_s > now_s - TURN_S)
        for link in held_up:
            if (not link.entry.refill(now_s) or link.paid_s > now_s) and link.peer is not None:
                self.held_up.append(link)
            elif link.peer is not None:
                link.is_held_up = False
                self.watch(link)
        for link in [k for k in self.stalled if now_s - k.stalled_s > STALLED_S]:
            self.cut(link, SLOW)
            self.move(link, now_s)

    def report(self) -> bytes:
        """Return the counts as a line."""
        refused = [[name, reason, n] for (name, reason), n in sorted(self.refused.items())]
        return json.dumps({"open": {n: self.open[n] for n in self.caps}, "refused": refused}).encode() + b"\n"

    def stop_listening(self) -> None:
        """Take no more in."""
        for fd, entry in self.listening.items():
            if entry not in self.muted:
                self.epoll.unregister(fd)
        self.listening, self.muted = {}, []

    def serve(self, orders: int, reports: int) -> None:
        """Carry until `orders` ends, then for a little longer what is under way."""
        os.set_blocking(orders, False)
        os.set_blocking(reports, False)
        self.epoll.register(orders, IN)
        last, reported_s, turned_s, until_s = b"", 0.0, 0.0, float("inf")
        while (now_s := time.monotonic()) < until_s and not (until_s < float("inf") and not self.links):
            wait_s = TURN_S if self.muted or self.unjoined or self.held_up or until_s < float("inf") else REPORT_S
            for fd, events in self.epoll.poll(wait_s):
                if fd == orders:
                    if not self._order(orders, now_s):
                        self.epoll.unregister(orders)
                        self.stop_listening()
                        until_s = now_s + ENDING_S
                elif (entry := self.listening.get(fd)) is not None:
                    self.accept(entry, now_s)
                elif (link := self.links.get(fd)) is not None:
                    self.happened(link, fd, events, now_s)
            if now_s - turned_s >= TURN_S:
                self.turn(now_s)
                turned_s = now_s
            if now_s - reported_s >= REPORT_S and (line := self.report()) != last:
                with contextlib.suppress(OSError):  # unread for long: the next one says it all
                    os.write(reports, line)
                    last = line
                reported_s = now_s

    def _order(self, orders: int, now_s: float) -> bool:
        data = os.read(orders, CHUNK)
        for line in data.decode().splitlines():
            self.cut_all(line.removeprefix("cut "), now_s)
        return bool(data)


def _tune(peer: socket.socket, address: Any) -> str:  # noqa: ANN401  # of either family
    """Make a connection ours; return who is at its other end, as far as the kernel knows."""
    peer.setblocking(False)
    if peer.family == socket.AF_UNIX:
        _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"uid {uid}"
    idle_s, every_s, probes = KEEPALIVE_S
    with contextlib.suppress(OSError):  # gone already
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_NODELAY, 1), (socket.TCP_KEEPIDLE, idle_s), (socket.TCP_KEEPCNT, probes),
                              (socket.TCP_KEEPINTVL, every_s), (socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)):  # fmt: skip
            peer.setsockopt(socket.IPPROTO_TCP, option, value)
    return str(address[0])


def _receive(source: socket.socket, size: int = CHUNK) -> bytes | None:
    """Return what is there, None when nothing is, b"" at the end."""
    try:
        return source.recv(size)
    except BlockingIOError:
        return None
    except OSError:  # reset: the end
        return b""


def _send(sink: socket.socket, data: bytes) -> bytes:
    """Send; return what is left. Raises OSError."""
    try:
        return data[sink.send(data) :]
    except BlockingIOError:
        return data


def _send_or_drop(sink: socket.socket, data: bytes) -> bytes:
    """Send to a peer; nothing is left for one that is gone, which reading from it will tell."""
    try:
        return _send(sink, data)
    except OSError:
        return b""


def main() -> None:
    """Serve what the argument says, until stdin ends. Signals are the daemon's affair: a Ctrl-C reaches us too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    spec = json.loads(sys.argv[1])
    Door([Entry(one) for one in spec["entries"]], spec["caps"]).serve(sys.stdin.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
