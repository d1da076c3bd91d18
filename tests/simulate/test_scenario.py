"""Scenario files: what ships loads, what is wrong is refused with a mend, a site given inline survives as TOML."""

from pathlib import Path

import pytest

from cosched.errors import BadInput
from cosched.resources import config_dir
from cosched.simulate.scenario import load_scenario, parse_scenario
from cosched.simulate.tomltext import dumps
from cosched.site import parse_site

SHIPPED = sorted((config_dir() / "scenarios").glob("*.toml"))

INLINE = """
v = 1
name = "t"

[site]
v = 1
name = "s"
cells = [{ id = "c0", ul_prbs = 24 }, { id = "c1", ul_prbs = 48, one_way_s = 0.005 }]
nodes = [{ id = "n0", device = "a100", fraction = 0.25 }]
models = [{ id = "m", config = "llama-3-8b" }]
ues = { count = 3, devices = [{ device = "phone", share = 1.0 }] }
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_scenarios_load(path: Path):
    loaded = load_scenario(path)
    assert loaded.scenario.name == path.stem
    assert loaded.area.sites_m.shape == (len(loaded.site.cells), 2)
    # the text that a trace will carry says the same site
    assert parse_site(loaded.site_toml, "again") == loaded.site


def test_there_are_scenarios():
    assert {"codesign", "mixed", "mixed-4x4", "urban-llm"} <= {p.stem for p in SHIPPED}


def test_inline_site_survives_as_text():
    loaded = parse_scenario(INLINE, "here")
    again = parse_site(loaded.site_toml, "again")
    assert again == loaded.site
    assert again.cells[1].one_way_s == 0.005


@pytest.mark.parametrize(
    ("addition", "complaint"),
    [
        ("[radio]\nenviroment = 'uma'", "unknown key 'radio.enviroment'; did you mean 'environment'?"),
        ("[radio.uplink]\nalfa = 1.0", "did you mean 'alpha'?"),
        ("[radio]\nenvironment = 'rma'", "Invalid enum value 'rma'"),
        ("[radio]\ncarrier_ghz = nan", "radio.carrier_ghz = nan: must be a finite number"),
        ("[radio]\nsites_m = [[0.0, 0.0]]", "radio.sites_m has 1 sites for 2 cells"),
        ("[radio]\ncell_radius_m = 5.0", "least_distance_m must be in (0, cell_radius_m)"),
        ("[radio]\nreport_period_s = 0.2", "report_period_s must be one of (0.1, 0.25)"),
        ("[mobility]\nspeed_m_s = -1.0", "speed_m_s must not be negative"),
        ("[mobility]\nkind = 'jump'", "Invalid enum value 'jump'"),
        ("[arrivals]\nrate_per_s = 1.0\nload = 1.0", "rate_per_s or load, not both"),
        ("[arrivals]\nrate_per_s = 0.0", "rate_per_s must be in (0, 10000]"),
        ("[arrivals]\nkind = 'recorded'", "needs 'requests'"),
        ("[arrivals]\nload = 'much'", "Expected `float | null`, got `str` - at `$.arrivals.load`"),
    ],
)
def test_what_is_wrong_is_refused_with_where_and_mend(addition: str, complaint: str):
    with pytest.raises(BadInput) as caught:
        parse_scenario(INLINE + addition, "here.toml")
    assert str(caught.value).startswith("here.toml: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("ul_prbs = 24", "ul_prb = 24", "unknown key 'cells.ul_prb'; did you mean 'ul_prbs'?"),
        ("v = 1\nname", "v = 2\nname", "this version reads v = 1"),
        ('name = "t"', 'name = "t"\nduration_s = inf', "duration_s = inf: must be a finite number"),
        ('name = "t"', 'name = "t"\nduration_s = -3.0', "duration_s must be in (0, 86400]"),
        ('name = "t"', 'name = "t"\nnmae = 1', "did you mean 'name'?"),
        ('name = "t"', "name = ", "Invalid value"),
    ],
)
def test_other_mistakes(old: str, new: str, complaint: str):
    with pytest.raises(BadInput, match="here") as caught:
        parse_scenario(INLINE.replace(old, new, 1), "here.toml")
    assert complaint in str(caught.value)


def test_missing_and_unreadable_files(tmp_path: Path):
    with pytest.raises(BadInput, match="scenarios that ship"):
        load_scenario(tmp_path / "none.toml")
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not a text file"):
        load_scenario(binary)


def test_unknown_site_lists_those_there_are():
    with pytest.raises(BadInput, match=r"node-bound\.toml"):
        parse_scenario('v = 1\nname = "t"\nsite = "nowhere"', "here.toml")


def test_toml_text_quotes_what_needs_it():
    import tomllib

    table = {"a b": 'x\n"y" \x7f é 😀', "n": {"list": [1, 2.5, True], "deep": [{"k": "v"}, {"k": "w"}]}}
    assert tomllib.loads(dumps(table)) == table
