"""A site's numbers: each has limits, and what is beyond is named. Beyond them points were no numbers any more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cosched.config import settings
from cosched.config import wiring as build
from cosched.errors import BadInput
from cosched.resources import config_file
from cosched.site import LIMITS, Cell, DeviceShare, Node, load_site, parse_site
from telemetry.messages import LlmSession, TaskOffer

SITE = """
v = 1
name = "one"
cells = [{ id = "cell0", ul_prbs = 52%(cell)s }]
nodes = [{ id = "edge0", device = "a100"%(node)s }]
models = [{ id = "llama-3-8b", config = "llama-3-8b" }]
ues = { count = 4, devices = [{ device = "phone", share = 1.0%(device)s }] }
"""
WHERE = {Cell: "cell", Node: "node", DeviceShare: "device"}
FIELDS = [(kind, name) for kind, limits in LIMITS.items() for name in limits if name not in {"ul_prbs", "share"}]


def site(kind: type, name: str, value: float | str) -> str:
    changes = dict.fromkeys(WHERE.values(), "")
    return SITE % {**changes, WHERE[kind]: f", {name} = {value}"}


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_what_is_beyond_its_limits_is_named(kind: type, name: str) -> None:
    least, most = LIMITS[kind][name]
    whole = isinstance(least, int)
    for value in (
        int(least) - 1 if whole else -1e-3,
        int(most) * 10 if whole else most * 10 + 1,
        "nan",
        "5e-324",
        "inf",
    ):
        if value == "5e-324" and least == 0:
            continue
        with pytest.raises(BadInput, match=name):
            parse_site(site(kind, name, value), "x.toml")


def test_at_the_limits_points_are_numbers() -> None:
    tokens = {"context_tokens": 9, "new_tokens": 9, "max_output_tokens": 9}
    work = LlmSession(model="llama-3-8b", ttft_s=2.0, tpot_s=0.2, **tokens)
    offer = TaskOffer(at_ns=0, source="", seq=0, task="t", ue="ue0", work=work)
    for kind, name in FIELDS:
        for value in LIMITS[kind][name]:
            text = site(kind, name, int(value) if isinstance(LIMITS[kind][name][0], int) else value)
            table = build.plant(text, "x.toml", {}).points(offer, 0)
            assert not np.isnan(table.fixed_s).any(), (name, value)


@pytest.mark.parametrize("text", ["v = " + "1" * 5000, "v = " + "[" * 5000, "v = {" * 2000])
def test_toml_that_python_refuses_to_read_is_one_line(tmp_path: Path, text: str) -> None:
    """Whole numbers of more than 4 300 digits, and nesting deeper than its stack."""
    path = tmp_path / "x.toml"
    path.write_text(text)
    for read in (lambda: parse_site(text, "x.toml"), lambda: load_site(path), lambda: settings.load(path, {})):
        with pytest.raises(BadInput, match=r"x\.toml") as refused:
            read()
        assert "\n" not in str(refused.value)


def test_the_batch_that_nodes_no_longer_have_is_refused_with_what_to_do() -> None:
    shipped = config_file("sites", "node-bound.toml").read_text()
    text = shipped.replace("fraction = 0.25", "fraction = 0.25\ndecode_batch = 2")
    with pytest.raises(BadInput, match=r"decode_batch.*decode in steps.*leave decode_batch out"):
        parse_site(text, "old.toml")
