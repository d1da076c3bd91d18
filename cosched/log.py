"""Logging set-up: JSON lines with a priority under systemd, readable lines elsewhere, always on stderr.

Modules log through `structlog.get_logger()`; only a program's entry calls `configure`, and the pure core never logs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# syslog(3) severities; journald reads them from a line's `<N>` prefix (sd-daemon(3), SyslogLevelPrefix=).
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}
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
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,  # a reload may change level and stream
    )


def _for_journal() -> list[Processor]:
    return [structlog.processors.format_exc_info, journal_line]


def _for_people(stream: TextIO, environ: Mapping[str, str]) -> list[Processor]:
    colors = stream.isatty() and not environ.get("NO_COLOR")  # https://no-color.org
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
