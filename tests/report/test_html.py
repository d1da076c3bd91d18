"""The HTML report: one file, offline, complete, not to be injected into; drawn in a real browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from report_records import POLICIES, make_result, make_sweep

from cosched.errors import BadInput
from cosched.report.html import render, write_report
from cosched.report.model import PolicyResult, ReplayResult, Sweep

EVIL = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">&"\'`%{x}'


class Page(HTMLParser):
    """Collects elements, visible text and the contents of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._raw = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in {"script", "style"} else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, _tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts[-1] += data
        elif not self._raw:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def charts(self) -> dict[str, dict[str, object]]:
        charts: dict[str, dict[str, object]] = json.loads(self.scripts[0])["charts"]
        return charts


def evil(text: str) -> str:
    return f"{text}{EVIL}"


def poisoned() -> ReplayResult:
    """Every id and text of a trace tries to break out."""
    clean = make_result(policies=("joint", "pf"), tasks=80, samples=8)
    trace = msgspec.structs.replace(clean.trace, path=evil("t"), sha256=evil("s"))
    runs = {p if p == "joint" else evil(p): poison(run) for p, run in clean.policies.items()}
    return msgspec.structs.replace(clean, trace=trace, policies=runs)


def poison(run: PolicyResult) -> PolicyResult:
    fates = [
        msgspec.structs.replace(
            f,
            task=evil(f.task),
            ue=evil(f.ue),
            cell=evil(f.cell),
            kind=evil(f.kind) if i % 2 else f.kind,
            point=evil(f.point),
            node=evil(f.node),
            reason=evil(f.reason),
            guess=(EVIL,),
        )
        for i, f in enumerate(run.fates)
    ]
    line = run.timeline
    timeline = msgspec.structs.replace(
        line,
        planned={evil(r): v for r, v in line.planned.items()},
        used={evil(r): v for r, v in line.used.items()},
    )
    summary = msgspec.structs.replace(run.summary, utilisation={evil(r): u for r, u in run.summary.utilisation.items()})
    name = run.policy if run.policy == "joint" else evil(run.policy)
    return msgspec.structs.replace(run, policy=name, fates=fates, timeline=timeline, summary=summary)


def poisoned_sweep() -> Sweep:
    clean = make_sweep(policies=("joint", "pf"))
    rows = [msgspec.structs.replace(r, site=evil(r.site)) for r in clean.rows]
    return msgspec.structs.replace(clean, name=EVIL, command=EVIL, rows=rows)


# --- content -------------------------------------------------------------------------------------------------------


def test_sections_stand_in_the_order_of_the_brief() -> None:
    page = render(make_result(tasks=200, samples=20), [make_sweep()])
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "Comparison",
        "Met over offered load",
        "Latency",
        "Who is served",
        "Cells and nodes",
        "Where the work is split",
        "Distance to the optimum",
        "What was not met",
        "The 10 worst misses of joint",
    ]


def test_every_chart_has_a_title_axis_titles_and_an_explanation() -> None:
    page = render(make_result(tasks=200, samples=20), [make_sweep(), make_sweep(weight=2.0)])
    parsed = Page(page)
    boxes = [a["data-chart"] for a in parsed.all("div") if "data-chart" in a]
    assert sorted(boxes) == sorted(parsed.charts)
    assert len(re.findall(r"<figcaption>\S", page)) == len(boxes) == len(re.findall(r"<h3>\S", page))
    for variants in parsed.charts.values():
        for spec in variants.values():
            assert spec["data"]
            titles = [v["title"]["text"] for k, v in spec["layout"].items() if k.startswith("xaxis")]
            assert all(titles)


def test_shares_and_splits_can_be_shown_for_every_policy() -> None:
    charts = Page(render(make_result(tasks=200, samples=20), [])).charts
    for key in ("shares", "split-time-llm", "split-channel-llm", "split-time-video", "split-channel-video"):
        assert set(charts[key]) == set(POLICIES)
        assert next(iter(charts[key])) == "joint"


def test_drawn_numbers_are_those_of_the_records() -> None:
    result = make_result(tasks=300, samples=50)
    charts = Page(render(result, [])).charts
    bars = charts["privacy"][""]["data"]
    private = [f for f in result.policies["pf"].fates if f.private]
    drawn = dict(zip(bars[0]["y"], bars[0]["x"], strict=True))["pf"]
    assert bars[0]["name"] == "private"
    assert drawn == pytest.approx(sum(f.outcome == "met" for f in private) / len(private))
    used = charts["shares"]["pf"]["data"][0]["y"]
    assert used == pytest.approx(result.policies["pf"].timeline.used["cell0/ul"], abs=1e-3)


def test_misses_are_told_with_their_reason() -> None:
    text = " ".join(Page(render(make_result(tasks=400, samples=5), [])).text)
    assert "Not finished when the trace ended." in text
    assert "phone: prefill time" in text
    assert re.search(r"first token within .*? took", text)


@pytest.mark.parametrize("tasks", [0, 1, 3])
@pytest.mark.parametrize("policies", [(), ("pf",), ("joint", "local")])
def test_tiny_replays_have_a_sentence_for_every_empty_chart(tasks: int, policies: tuple[str, ...]) -> None:
    empty_sweep = Sweep(v=1, name="nothing", command="cosched bench", rows=[])
    page = render(make_result(policies=policies, tasks=tasks, samples=tasks), [empty_sweep])
    parsed = Page(page)
    for key, variants in parsed.charts.items():
        assert bool(variants) == any(a.get("data-chart") == key for a in parsed.all("div"))
    assert not re.search(r'<p class="empty"( hidden)?></p>', page)


def test_nobody_admitted_and_never_finished() -> None:
    clean = make_result(policies=("joint",), tasks=40, samples=4)
    run = clean.policies["joint"]
    nobody = [
        msgspec.structs.replace(f, outcome="rejected", reason="rejected_no_point", split=-1, latency_s=(), point="")
        for f in run.fates
    ]
    summary = msgspec.structs.replace(run.summary, admitted=0, met=0, met_ratio=0.0, value=0.0)
    rejected = msgspec.structs.replace(run, fates=nobody, summary=summary)
    text = " ".join(Page(render(msgspec.structs.replace(clean, policies={"joint": rejected}), [])).text)
    assert "joint met 0 % of 40 tasks" in text
    assert "let no task in" in text
    late = [
        msgspec.structs.replace(f, outcome="missed", reason="not_finished", lateness=float("inf")) for f in run.fates
    ]
    page = render(msgspec.structs.replace(clean, policies={"joint": msgspec.structs.replace(run, fates=late)}), [])
    assert "Infinity" not in Page(page).scripts[0]
    assert "NaN" not in Page(page).scripts[0]


# --- one file, offline, safe ---------------------------------------------------------------------------------------


def test_the_page_loads_nothing() -> None:
    page = render(make_result(tasks=60, samples=6), [make_sweep()])
    parsed = Page(page)
    for tag, attrs in parsed.elements:
        assert not {"src", "href", "srcset", "data", "action"} & set(attrs), tag
    assert "link" not in [tag for tag, _ in parsed.elements]
    assert "@import" not in page.split("</style>", maxsplit=1)[0]
    assert "url(" not in page.split("</style>", maxsplit=1)[0]


def test_only_our_two_scripts_may_run() -> None:
    parsed = Page(render(poisoned(), [poisoned_sweep()]))
    rules = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert rules is not None
    assert rules.startswith("default-src 'none'; script-src 'sha256-")
    data, *code = parsed.scripts
    assert json.loads(data)
    assert len(code) == 2
    for script in code:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in rules


def test_ids_of_a_trace_cannot_inject() -> None:
    page = render(poisoned(), [poisoned_sweep()])
    parsed = Page(page)
    assert not parsed.all("img")
    assert not any(name.startswith("on") for _, attrs in parsed.elements for name in attrs)
    assert any(EVIL in text for text in parsed.text)  # shown as it is, as text
    assert "<" not in parsed.scripts[0]
    markup = re.compile(r"<(?!br>|extra>|/extra>)[a-z/]")
    assert not [text for text in strings(json.loads(parsed.scripts[0])["charts"]) if markup.search(text)]


def strings(node: object, key: str = "") -> list[str]:
    """All texts that plotly would draw (colours and names of scales are not drawn, keys of variants are not texts)."""
    if isinstance(node, str):
        return [] if key.endswith("color") else [node]
    if isinstance(node, list):
        return [text for item in node for text in strings(item, key)]
    if isinstance(node, dict):
        return [text for name, item in node.items() for text in strings(item, name)]
    return []


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write the report"):
        write_report(make_result(policies=(), tasks=0, samples=0), [], tmp_path / "nowhere" / "r.html")


def test_same_records_same_file() -> None:
    assert render(make_result(tasks=90, samples=9), []) == render(make_result(tasks=90, samples=9), [])


def test_a_large_replay_is_written_fast_and_stays_small(tmp_path: Path) -> None:
    result = make_result(tasks=2000, samples=3000)
    start = time.process_time()
    write_report(result, [make_sweep()], tmp_path / "r.html")
    assert time.process_time() - start < 5
    assert (tmp_path / "r.html").stat().st_size < 12e6


# --- drawn ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_browser_draws_every_chart_and_runs_no_injected_script(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine to draw the report with")
    write_report(poisoned(), [poisoned_sweep()], tmp_path / "r.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, *flags, *quiet, profile, "--dump-dom", (tmp_path / "r.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    boxes = dom.count('data-chart="')
    assert boxes >= 8
    assert dom.count("js-plotly-plot") >= boxes
    assert "<title>cosched: " in dom  # an injected script would have renamed it
    assert not [a for _, attrs in Page(dom).elements for a in attrs if a == "onerror"]
