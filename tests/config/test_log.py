"""Logging: JSON with a priority where journald reads, plain lines elsewhere, colours only on a terminal."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest
import structlog

from cosched.config import log


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def journal_of(path: Path) -> dict[str, str]:
    status = path.stat()
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


def test_under_systemd_a_line_is_a_priority_and_one_json_object(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("w") as stream:
        log.configure("info", stream, journal_of(path))
        structlog.get_logger().warning("frame refused", source="gnb\n1", at=path)
    lines = path.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("<4>{")
    event = json.loads(lines[0][3:])
    assert event["event"] == "frame refused"
    assert event["level"] == "warning"
    assert event["source"] == "gnb\n1"
    assert event["at"] == repr(path), "a value that JSON lacks does not lose the line"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", event["timestamp"])


def test_traceback_stays_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("w") as stream:
        log.configure("info", stream, journal_of(path))
        try:
            _ = 1 // 0
        except ZeroDivisionError:
            structlog.get_logger().exception("solve failed")
    (line,) = path.read_text().splitlines()
    assert line.startswith("<3>")
    assert "ZeroDivisionError" in json.loads(line[3:])["exception"]


def test_inherited_variable_of_another_stream_does_not_count(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    with (tmp_path / "file").open("w") as stream:
        assert not log.under_journal(stream, journal_of(other))
        assert not log.under_journal(stream, {})
        assert not log.under_journal(stream, {"JOURNAL_STREAM": "rubbish"})
    assert not log.under_journal(io.StringIO(), journal_of(other))


@pytest.mark.parametrize(
    ("stream", "environ", "coloured"),
    [(io.StringIO(), {}, False), (Terminal(), {}, True), (Terminal(), {"NO_COLOR": "1"}, False)],
)
def test_people_get_readable_lines(stream: io.StringIO, environ: dict[str, str], coloured: bool) -> None:
    log.configure("info", stream, environ)
    structlog.get_logger().info("listening", port=5551)
    text = stream.getvalue()
    assert ("\x1b[" in text) is coloured
    assert "listening" in text
    assert "5551" in text
    assert text.count("\n") == 1


def test_level_is_a_threshold() -> None:
    stream = io.StringIO()
    log.configure("warning", stream, {})
    structlog.get_logger().info("quiet")
    structlog.get_logger().error("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_unknown_level_is_refused() -> None:
    with pytest.raises(KeyError):
        log.configure("chatty")


def test_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert "JOURNAL_STREAM" not in os.environ or not log.under_journal(io.StringIO(), os.environ)
    log.configure()
    structlog.get_logger().info("hello")
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err
