"""The configuration: defaults documented, origins told, mistakes named with the nearest key; places of files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from daemon_cases import cosched

from cosched.config import paths as places
from cosched.config.settings import FIXED, default_file, flatten, load
from cosched.core.settings import Settings as CoreSettings
from cosched.errors import BadInput


def test_defaults_are_those_of_the_core_and_each_is_explained():
    loaded = load(environ={})
    assert loaded.settings.core == CoreSettings()
    assert set(loaded.origin.values()) == {"default"}
    documented = set(re.findall(r"(?m)^(\w+) = .*#", default_file().read_text()))
    assert documented >= {key.rpartition(".")[2] for key in loaded.flat()} - {"v"}
    assert {f"core.{name}" for name in CoreSettings.__struct_fields__} <= set(loaded.flat())
    assert set(FIXED) <= set(loaded.flat())


def test_each_layer_overrides_the_one_below(tmp_path: Path):
    file = tmp_path / "c.toml"
    file.write_text('policy = "greedy"\n[core]\nz = 0.5\n[ue_devices]\nue1 = "phone"\n')
    loaded = load(file, {"COSCHED_CORE_Z": "0.6", "COSCHED_SITE": "node-bound", "COSCHED_KEYS": "elsewhere"})
    assert (loaded.settings.policy, loaded.settings.core.z, loaded.settings.site) == ("greedy", 0.6, "node-bound")
    assert loaded.settings.ue_devices == {"ue1": "phone"}
    assert loaded.origin["policy"] == str(file)
    assert loaded.origin["core.z"] == "COSCHED_CORE_Z"
    assert loaded.origin["core.ewma"] == "default"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[core]\nzz = 1", r"unknown key 'core.zz'; did you mean 'core.z'"),
        ("[kore]\nz = 1", r"unknown key 'kore.z'"),
        ("[core]\nz = 'a'", r"Expected `float`, got `str` - at `\$.core.z`"),
        ("v = 2", "v = 2"),
        ("policy = 'best'", "no such policy"),
        ("[shadow]\nbaseline = 'x'", "no such policy"),
        ("[core]\nperiod_s = 5.0", "near-RT period"),
        ("[core]\nlease_s = 0.1", "two periods"),
        ("[solver]\nbudget_s = 0.0", "solver.budget_s must be above 0"),
        ("[log]\nlevel = 'loud'", "one of debug"),
        ("[core", "c.toml"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, text: str, reason: str):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(BadInput, match=reason) as error:
        load(file, {})
    assert str(file) in str(error.value) or "policy" in reason


def test_an_environment_variable_that_is_no_key_is_refused():
    with pytest.raises(BadInput, match="did you mean 'COSCHED_SOLVER_BUDGET_S'"):
        load(environ={"COSCHED_SOLVER_BUGET_S": "1"})


def test_commands_check_and_show(tmp_path: Path):
    file = tmp_path / "c.toml"
    file.write_text("site = 'nowhere'")
    done = cosched("config", "check", "--config", str(file))
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    shown = cosched("config", "show", "--config", str(file))
    assert shown.returncode == 0
    assert re.search(rf'(?m)^site = "nowhere" +# {file}$', shown.stdout)


def test_places_follow_systemd_then_xdg(monkeypatch: pytest.MonkeyPatch):
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/x")
    assert places.state_dir() == Path("/home/x/.local/state/cosched")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert places.control_endpoint() == "ipc:///run/user/1/cosched/control.sock"
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/cosched:/run/more")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/cosched")
    assert places.decisions_endpoint() == "ipc:///run/cosched/decisions.sock"
    assert places.state_dir() == Path("/var/lib/cosched")


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
