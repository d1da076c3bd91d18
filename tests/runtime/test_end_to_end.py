"""`cosched ue`, `cosched host` and the daemon, each a process of its own: a lease that layers follow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra [llm] is not installed")

import runtime_cases as cases
from daemon_cases import PATIENCE_S, Place, radio, repeated, until

from cosched.runtime.chain import Hop, Links, Route
from cosched.runtime.generation import Generation
from cosched.runtime.parts import Part

SITE = """
v = 1
name = "tiny"
cells = [{ id = "cell0", ul_prbs = 48 }]
nodes = [{ id = "edge0", device = "a100", fraction = 0.25 }]
models = [{ id = "llama", config = "CONFIG", activation_bits = [16] }]
[ues]
count = 4
devices = [{ device = "phone", share = 1.0, max_layers = 2 }]
[mix]
model = "llama"
"""
N_TOKENS = 12


def cosched_ue(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cosched.cli.main", "ue", *args],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_lease_splits_a_model_and_the_daemon_hears_how_it_went(tmp_path: Path) -> None:
    source = cases.seeded(tmp_path)
    site = tmp_path / "site.toml"
    site.write_text(SITE.replace("CONFIG", str(tmp_path / "llama.json")))
    place, host = Place(tmp_path, {"SITE": str(site)}), cases.HostProcess(tmp_path, "edge0")
    tokens = ",".join(map(str, cases.PROMPT))
    model = ["--model", f"llama={tmp_path / 'llama.json'}", "--seed", str(cases.SEED), "--threads", "1", "--json"]
    asking = ["--endpoint", place.control, "--connect", place.bus, "--tokens", tokens, "--max-tokens", str(N_TOKENS)]
    try:
        with (
            place.daemon() as daemon,
            daemon.ready() as client,
            radio(place, client) as channel,
            repeated(lambda: channel.report(2.0, 2.0, 2.0, 2.0), 0.2),
        ):
            endpoint = host.endpoint()
            node = ["--node", f"edge0={endpoint}", "--ttft", "5", "--tpot", "1"]
            done = cosched_ue(*model, *asking, *node, "--max-layers", "2", "--private", "--task", "t1")
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            assert found["split_layer"] in {1, 2}
            assert found["tokens"] == along(source, Route(found["split_layer"], (Hop(endpoint, cases.LAYERS),), 16))
            assert 0 < found["tpot_s"] < found["ttft_s"] * 100
            until(lambda: client.list().total == 0 and client.explain("t1").lease.reason == "finished")

            host.kill()
            short = cosched_ue(*model, *asking, *node, "--max-layers", "2", "--private", "--task", "t2")
            assert short.returncode == 1
            assert "was not begun: the host at tcp://" in short.stderr
            assert "this device holds 2" in short.stderr
            until(lambda: client.status().tasks == 0)
    finally:
        host.kill()


def along(source: cases.ModelSource, route: Route) -> list[int]:
    """Tokens along a route, from this process."""
    links = Links()
    run = Generation(Part(source), "again", cases.PROMPT, route, links)
    found = list(run.stream(N_TOKENS))
    run.close()
    links.close()
    return found


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", "x", "--tokens", "1"], "either --prompt or --tokens"),
        (["--tokens", "1,b"], "token ids with commas"),
        (["--prompt", "x", "--node", "edge0"], "NAME=ENDPOINT"),
        (["--prompt", "x", "--split", "3"], "--split 3 of 6 layers needs a --node"),
        (["--prompt", "x", "--endpoint", "ipc:///nowhere"], "no daemon is there"),
        (["--prompt", "x", "--device", "tpu"], "--device tpu"),
        (["--prompt", "x", "--dtype", "int8"], "there are: float32"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from cosched.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main(["ue", "--model", str(cases.write_config(tmp_path, "llama")), "--seed", "1", *args])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
