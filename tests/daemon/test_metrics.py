"""Prometheus metrics: served over HTTP, named by convention, few labels; dashboard and alerts ask for them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml
from control_peer import STATUS
from daemon_cases import cosched
from prometheus_client.parser import text_string_to_metric_families

from cosched.api import messages as api
from cosched.daemon import metrics
from cosched.daemon.metrics import Exporter, families
from cosched.errors import BadInput

CONFIG = Path(__file__).resolve().parents[2] / "config"
DASHBOARD = CONFIG / "grafana" / "cosched.json"
ALERTS = CONFIG / "prometheus" / "alerts.yml"
FULL = msgspec.structs.replace(STATUS, solve_ms=STATUS.submit_ms, telemetry_ms=STATUS.submit_ms)


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    made = Exporter("127.0.0.1:0")
    yield made
    made.close()


def scraped(exporter: Exporter) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        f"{s.name}{json.dumps(s.labels, sort_keys=True) if s.labels else ''}": s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_what_is_served_is_the_latest_status(exporter: Exporter) -> None:
    assert not any(name.startswith("cosched_") for name in scraped(exporter)), "nothing is known yet"
    exporter.latest = FULL
    found = scraped(exporter)
    assert found['cosched_mode{"mode": "STEADY"}'] == 1
    assert found['cosched_mode{"mode": "DEGRADED"}'] == 0
    assert found['cosched_tasks{"promise": "promised"}'] == 1
    assert found['cosched_resource_planned_ratio{"kind": "comm", "resource": "cell0/ul"}'] == 0.5
    assert found['cosched_submit_latency_seconds{"quantile": "0.99"}'] == pytest.approx(0.002)
    assert found['cosched_telemetry_refused_total{"reason": "dl_cqi outside 0..15"}'] == 2
    assert found['cosched_events_total{"event": "admitted"}'] == 3
    assert found['cosched_shadow_tasks{"fate": "met", "policy": "live"}'] == 6
    assert found["cosched_plan_gap_ratio"] == pytest.approx(0.01)
    assert found["process_resident_memory_bytes"] > 1e6
    exporter.latest = msgspec.structs.replace(FULL, mode="DRAINING")
    assert scraped(exporter)['cosched_mode{"mode": "DRAINING"}'] == 1


def test_refusals_of_many_sources_are_one_number() -> None:
    refused = tuple(api.Counted(source=f"ue-{i}", reason="too large", n=2) for i in range(1000))
    status = msgspec.structs.replace(
        FULL, ingest=api.IngestView(refused=refused, lost={f"ue-{i}": 1 for i in range(1000)})
    )
    samples = [sample for family in families(status) for sample in family.samples]
    assert len(samples) < 100
    assert sum(s.value for s in samples if s.name == "cosched_telemetry_refused_total") == 2000
    assert not any("ue-" in value for s in samples for value in s.labels.values())


def test_names_follow_the_conventions() -> None:
    for family in families(FULL):
        assert re.fullmatch(r"cosched_[a-z][a-z0-9_]*", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|percent|kb|ns)(_|$)", family.name), "base units"
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert set(sample.labels) <= {
                *("version", "site", "policy", "baseline", "mode", "event", "reason", "promise", "resource", "kind"),
                *("quantile", "fate"),
            }


def test_a_delay_that_was_never_measured_is_absent() -> None:
    names = {s.name for family in families(STATUS) for s in family.samples}
    assert "cosched_submit_latency_seconds" in names
    assert "cosched_solve_latency_seconds" not in names


@pytest.mark.parametrize("listen", ["9464", "localhost:", "127.0.0.1:http", "127.0.0.1:99999", "999.0.0.1:0"])
def test_a_place_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"metrics.listen = '{listen}': ")):
        Exporter(listen)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(BadInput, match="Address already in use"):
            Exporter(f"127.0.0.1:{port}")


def test_half_open_requests_take_no_thread_each_and_a_scraper_comes_through(exporter: Exporter) -> None:
    exporter.latest = FULL
    before = threading.active_count()
    held = [socket.create_connection(("127.0.0.1", exporter.port), timeout=5) for _ in range(300)]
    for one in held:
        with contextlib.suppress(OSError):  # gone already
            one.sendall(b"GET /metrics HTTP/1.1\r\n")
    assert scraped(exporter)['cosched_mode{"mode": "STEADY"}'] == 1
    assert threading.active_count() == before
    assert exporter.evicted >= 300 - metrics.MOST
    for one in held:
        one.close()


@pytest.mark.parametrize("sent", [b"GET /metrics HTTP/1.1\r\n", b"", b"x" * 100_000], ids=["half", "silent", "long"])
def test_a_request_that_never_ends_is_ended(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "DEADLINE_S", 0.2)
    made = Exporter("127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", made.port), timeout=10) as one:
        with contextlib.suppress(OSError):
            one.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(1) == b""
    made.close()


def test_what_is_no_page_of_ours_is_not_found(exporter: Exporter) -> None:
    for request in (b"POST /metrics HTTP/1.1\r\n\r\n", b"GET /secret HTTP/1.1\r\n\r\n", b"\xff\xfe\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", exporter.port), timeout=10) as one:
            one.sendall(request)
            assert one.recv(100).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(("listen", "warned"), [("0.0.0.0:9464", 1), ("[::]:9464", 1), ("127.0.0.1:9464", 0), ("", 0)])
def test_beyond_this_machine_there_is_a_word_of_warning(listen: str, warned: int, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'[metrics]\nlisten = "{listen}"\n')
    done = cosched("config", "check", "--config", str(tmp_path / "c.toml"))
    assert done.returncode == 0
    assert done.stderr.count("whoever reaches this machine can read the metrics") == warned


# ---- what asks for them


def exported() -> dict[str, set[str]]:
    """Name of each sample -> its labels."""
    found: dict[str, set[str]] = {}
    for family in families(FULL):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[tuple[str, str]]:
    board = json.loads(DASHBOARD.read_text())
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    asked = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel["targets"]]
    return asked + [(rule["alert"], rule["expr"]) for rule in rules]


@pytest.mark.parametrize(("where", "expr"), expressions(), ids=lambda value: value[:24])
def test_dashboard_and_alerts_ask_for_what_there_is(where: str, expr: str) -> None:
    there = exported()
    for name, selector in re.findall(r"(cosched_\w+)(\{[^}]*\})?", expr):
        assert name in there, where
        labels = set(re.findall(r"(\w+)=~?\"", selector)) - {"job", "instance"}
        assert labels <= there[name], where
    assert expr.count("(") == expr.count(")")
    assert expr.count("{") == expr.count("}")


def test_dashboard_is_one_that_grafana_takes() -> None:
    board = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    legends = [t["legendFormat"] for panel in board["panels"] for t in panel["targets"]]
    assert not any("ue" in re.findall(r"\{\{(\w+)\}\}", legend) for legend in legends)
    cells = [(x, y) for panel in board["panels"] for x, y in _cells(panel["gridPos"])]
    assert len(set(cells)) == len(cells), "no panel lies over another"


def _cells(at: dict[str, int]) -> Iterator[tuple[int, int]]:
    yield from ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))


def test_every_alert_says_what_to_do_about_what() -> None:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"warning", "critical"}
            assert rule["annotations"]["summary"].endswith((".", "?"))
