"""Logging set-up: JSON lines with a priority under systemd, readable lines elsewhere, always on stderr.

Modules log through `structlog.get_logger()`; only a program's entry calls `configure`, and the pure core never logs.
Logging never waits for whoever reads: what a full pipe does not take is kept, up to a bound, and written by a thread
when it takes more; beyond the bound lines are dropped, counted (`dropped`), and the count is logged when there is room.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import select
import socket
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# syslog(3) severities; journald reads them from a line's `<N>` prefix (sd-daemon(3), SyslogLevelPrefix=).
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}
MOST_BYTES: Final = 1 << 20  # of lines that wait for whoever reads them
LAST_S: Final = 0.5  # the last lines have this long to be read
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


def under_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether `stream` is the socket that journald reads.

    systemd sets JOURNAL_STREAM to `device:inode` of that socket (systemd.exec(5)); children inherit the variable, so
    the numbers are compared with the stream's own.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def journal_line(_: WrappedLogger, level: str, event: EventDict) -> str:
    """Render an event as journald's priority and one JSON object; a value without a JSON form is its `repr`."""
    return f"<{PRIORITIES.get(level, 6)}>{json.dumps(event, default=repr)}"


class Outlet:
    """Writes lines to a descriptor without ever waiting for it; in order.

    A pipe or terminal is opened anew, to be made non-blocking for us alone; a socket is told with each line.
    What can be neither is written by the thread alone, which may wait.
    """

    def __init__(self, fd: int) -> None:
        self.dropped = 0
        self._told = 0  # of them
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        kind = os.fstat(fd).st_mode
        self._fd = fd
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(kind) else None
        self._may_wait = False
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            except OSError:
                self._may_wait = True

    def write(self, line: bytes) -> None:
        """Write a line, or keep it for later, or drop it."""
        with self._changed:
            if not self._lines and not self._may_wait:
                line = self._write(line)
            if not line:
                return
            if self._bytes + len(line) > MOST_BYTES:
                self.dropped += 1
                return
            self._tell_dropped()
            self._lines.append(line)
            self._bytes += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is written; False when it is not within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines, timeout_s)

    def _write(self, line: bytes) -> bytes:
        """Write; return what is left. A reader that is gone takes everything."""
        try:
            sent = self._socket.send(line, socket.MSG_DONTWAIT) if self._socket else os.write(self._fd, line)
        except BlockingIOError:
            return line
        except OSError:
            return b""
        return line[sent:]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines))
                line = self._lines[0]
            left = line
            if self._may_wait:
                self._write_all(line)
                left = b""
            elif self._can_be_written():
                left = self._write(line)
            with self._changed:
                self._bytes -= len(line) - len(left)
                if left:
                    self._lines[0] = left
                else:
                    self._lines.popleft()
                if not self._lines:
                    self._tell_dropped()
                self._changed.notify_all()

    def _can_be_written(self) -> bool:
        poll = select.poll()
        poll.register(self._socket or self._fd, select.POLLOUT)
        return bool(poll.poll(1000))

    def _write_all(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._fd, line) :]
            except OSError:
                return

    def _tell_dropped(self) -> None:
        if self.dropped == self._told:
            return
        number, self._told = self.dropped - self._told, self.dropped
        line = f"<4>cosched: {number} log lines were dropped: nobody read them in time\n".encode()
        self._lines.append(line if self._socket else line[3:])
        self._bytes += len(self._lines[-1])


class _Logger:
    """What structlog hands rendered lines to."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def msg(self, message: str) -> None:
        """Write a line."""
        self._outlet.write(f"{message}\n".encode("utf-8", "backslashreplace"))

    log = debug = info = warn = warning = error = critical = exception = fatal = failure = err = msg


class _Unblocked(io.TextIOBase):
    """What stands for stderr or stdout in a process that may never wait for who reads them: warnings go there too."""

    def __init__(self, outlet: Outlet, stream: TextIO) -> None:
        self._outlet, self._stream = outlet, stream

    def write(self, text: str) -> int:
        """Hand text over."""
        self._outlet.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def fileno(self) -> int:
        """Descriptor of the stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()


_outlets: dict[int, Outlet] = {}  # by descriptor: a reload goes on with the one that there is


def dropped() -> int:
    """How many lines were dropped since the start."""
    return sum(outlet.dropped for outlet in _outlets.values())


def flush(timeout_s: float = LAST_S) -> None:
    """Wait, not for long, until what was logged is out: before the end of the process."""
    for outlet in _outlets.values():
        outlet.flush(timeout_s)


def _factory(stream: TextIO) -> Callable[..., Any]:
    """Return what makes loggers on a stream; one that is no file is written to as it is."""
    try:
        fd = stream.fileno()
    except (OSError, ValueError):
        return structlog.WriteLoggerFactory(stream)
    if fd not in (1, 2):  # a file that somebody opened, and may close
        return structlog.WriteLoggerFactory(stream)
    logger = _Logger(_outlet(fd))
    return lambda *_: logger


def _outlet(fd: int) -> Outlet:
    if fd not in _outlets:
        _outlets[fd] = Outlet(fd)
        atexit.register(_outlets[fd].flush, LAST_S)
    return _outlets[fd]


def unblock() -> None:
    """Have everything that this process prints from here on go the way of the log: it never waits."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            same = stream.fileno() == fd
        except (AttributeError, OSError, ValueError):  # closed, or somebody's own
            same = False
        if same:
            stream.flush()
            setattr(sys, name, _Unblocked(_outlet(fd), stream))


def configure(level: str = "info", stream: TextIO | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Set up logging for the process. `level`: debug, info, warning, error or critical; KeyError for another."""
    out = sys.stderr if stream is None else stream
    env = os.environ if environ is None else environ
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *(_for_journal() if under_journal(out, env) else _for_people(out, env)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=_factory(out),
        cache_logger_on_first_use=False,  # a reload may change level and stream
    )


def _for_journal() -> list[Processor]:
    return [structlog.processors.format_exc_info, journal_line]


def _for_people(stream: TextIO, environ: Mapping[str, str]) -> list[Processor]:
    colors = stream.isatty() and not environ.get("NO_COLOR")  # https://no-color.org
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
