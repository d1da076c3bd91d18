"""A reload is put into force as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from life_cases import S_NS, SITE, Home

from cosched.api import messages as api
from cosched.api.access import Access, Identity
from cosched.config.settings import FIXED, flatten
from cosched.core.snapshot import Snapshot
from cosched.daemon.capture import captures

WITHOUT_EDGE0 = SITE.replace('{ id = "edge0", device = "a100", fraction = 0.5 }, ', "")
WITHOUT_CELL0 = SITE.replace('{ id = "cell0", ul_prbs = 273, scs_khz = 30 }, ', "")
ONLY_CELL1 = ("cell1",)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Two tasks that run, in the second cell."""
    found = Home(tmp_path)
    found.report(cell="cell1")
    found.submit("a", "b")
    assert all(lease.node for lease in found.published)
    yield found
    found.close()


def state_of(home: Home) -> bytes:
    taken = home.engine.core.snapshot()
    return msgspec.json.encode((taken, home.engine.plant.toml, home.life.loaded.flat(), home.life.policy_chosen))


def refused(home: Home, *words: str) -> None:
    """A reload is refused with these words, and changes nothing at all."""
    before, held = state_of(home), home.life.loaded
    fault = home.fault("reload")
    assert fault.code == "refused_configuration"
    assert all(word in fault.message for word in words), fault.message
    assert state_of(home) == before
    assert home.life.loaded is held
    home.wait(0.2, cells=ONLY_CELL1)
    assert set(home.engine.trackers) == {"a", "b"}


def test_what_has_changed_is_in_force_and_named(home: Home):
    home.write(core__lease_s="0.4", lease__silent_s="3.0")
    generation = home.engine.core.generation
    done = home.result(api.Reloaded, "reload")
    assert done == api.Reloaded(changed=("core.lease_s", "lease.silent_s"), generation=generation)
    home.wait(0.4, cells=ONLY_CELL1)
    assert home.published[-1].valid_for_ms == pytest.approx(400.0)
    assert home.published[-1].plan > generation, "generations go on"
    home.wait(3.0, cells=ONLY_CELL1)
    assert not home.engine.trackers, "the UE is reported, the tasks are not cared for"
    assert home.published[-1].reason == "silent"


def test_nothing_changed_is_nothing_named(home: Home):
    assert home.result(api.Reloaded, "reload").changed == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"core__lease_s": '"long"'}, ("lease_s",)),
        ({"core__nonsense": "1"}, ("nonsense",)),
        ({"policy": '"magic"'}, ("magic",)),
        ({"state__dir": '"/elsewhere"'}, ("state.dir", "restart")),
        ({"control__bind": '["ipc:///tmp/x"]', "core__lease_s": "0.4"}, ("control.bind", "restart")),
    ],
)
def test_a_mistake_refuses_it_as_a_whole(home: Home, settings: dict[str, str], words: tuple[str, ...]):
    home.write(**settings)
    refused(home, *words)


def test_a_site_that_is_none_is_refused(home: Home):
    home.site = SITE.replace("ul_prbs = 273", "ul_prbs = 0")
    home.write()
    refused(home)


def test_a_site_without_a_place_for_a_running_task_is_refused_and_names_it(home: Home):
    nodes = {lease.node for lease in home.published}
    home.site = (
        WITHOUT_EDGE0 if "edge0" in nodes else SITE.replace(', { id = "edge1", device = "h100", fraction = 0.25 }', "")
    )
    home.write()
    refused(home, "no place for", "a", "release or drain them first")


def test_a_site_of_other_cells_goes_on_with_the_tasks_and_counts_them_anew(home: Home):
    home.site = WITHOUT_CELL0
    home.write()
    assert home.result(api.Reloaded, "reload").changed == ()
    assert [c.id for c in home.engine.plant.site.cells] == ["cell1"]
    assert {t.cell for t in home.engine.core.state.tasks.values()} == {0}
    assert {held.decision.cell for held in home.engine.board.held.values()} == {0}
    home.now_ns += S_NS // 4
    home.wait(0.1, cells=ONLY_CELL1)
    lease = home.published[-1]
    assert lease.cell == "cell1"
    assert lease.bandwidth_hz == pytest.approx(lease.weight_prb * 12 * 15e3)


def test_the_policy_of_the_file_is_in_force_where_it_has_changed_and_the_operator_s_stays_where_not(home: Home):
    assert home.result(api.PolicyView, "policy", {"policy": "greedy"}).policy == "greedy"
    home.write(core__lease_s="0.4")
    assert home.result(api.Reloaded, "reload").changed == ("core.lease_s",)
    assert home.life.policy_chosen == home.engine.core.policy.name == "greedy"
    assert home.life.store._meta["policy"] == "greedy"
    home.write(policy='"pf-admit"')
    assert home.result(api.Reloaded, "reload").changed == ("policy",)
    assert home.life.policy_chosen == home.engine.core.policy.name == "pf-admit"
    assert home.life.store._meta["policy"] == "", "the file's word is later than the operator's"


def test_an_open_solve_is_waited_for_and_not_cut_off(home: Home):
    home.write(core__lease_s="0.4")
    home.send("submit", {"task": "c", "ue": "ue0", "work": msgspec.to_builtins(home.engine.trackers["a"].offer.work)})
    home.control.flush()
    route = home.send("reload")
    answer = home.answers[route][0]
    assert isinstance(answer.error, api.Fault)
    assert "busy" in answer.error.message
    assert home.life.loaded.settings.core.lease_s == 0.5
    home.settle()
    assert set(home.engine.trackers) == {"a", "b", "c"}


def test_a_new_capture_begins_with_the_new_configuration_and_the_pool_has_the_new_budget(home: Home):
    before = captures(home.folder / "captures")
    home.write(solver__budget_s="0.123", capture__max_bytes="12345678")
    home.ask("reload")
    assert len(captures(home.folder / "captures")) == len(before) + 1
    assert home.engine.capture.settings.max_bytes == 12345678
    assert home.life.pool.budget_s == 0.123


@pytest.mark.parametrize("gone", [False, True])
def test_who_has_lost_his_key_is_cut_off_and_nobody_where_none_has(
    home: Home, gone: bool, monkeypatch: pytest.MonkeyPatch
):
    one, other = (Identity(name=n, public=n * 40, role="viewer") for n in "ab")
    before, fresh = Access([one, other]), Access([one] if gone else [one, other])
    cut: list[tuple[str, ...]] = []
    home.life.access = before
    home.life.authenticator = SimpleNamespace(access=before, refused={})
    home.life.sockets.gate.cut = lambda *names: cut.append(names)
    monkeypatch.setattr("cosched.daemon.endpoints.security", lambda _: (None, fresh))
    home.ask("reload")
    assert home.life.access is home.life.authenticator.access is home.life.ingest.access is fresh
    assert cut == ([("decisions", "telemetry")] if gone else [])


def test_what_only_a_restart_changes_is_there_to_be_changed(home: Home):
    assert set(FIXED) <= set(flatten(msgspec.to_builtins(home.life.loaded.settings)))
    assert msgspec.json.decode(msgspec.json.encode(home.engine.core.snapshot()), type=Snapshot)
