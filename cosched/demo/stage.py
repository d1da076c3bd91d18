"""What the cluster part of the demo is set up with: a site, a model's configuration, and the channels of four UEs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cosched.errors import BadInput
from cosched.resources import config_file
from telemetry.messages import LlmSession, Message, UeReportBatch
from telemetry.trace import read_trace

UES: Final = ("ue07", "ue26", "ue09", "ue31")  # of the sample's cell0, from its best channel to its worst
MODEL: Final = "demo"  # its id at the site
SEED: Final = 5  # of its weights
PROMPT: Final = tuple(range(1, 25))
TOKENS: Final = 80  # of each UE
TTFT_S: Final = 2.5
TPOT_S: Final = 0.16
FILES: Final = ("node.toml", "phone.toml", "config.json")
COLUMNS: Final = ("ue", "cell", "ul_efficiency_bps_hz", "dl_efficiency_bps_hz", "ul_sinr_db", "prb_used_ul")
CONFIG: Final = """\
site = '{folder}/site.toml'
[telemetry]
bind = ['ipc://{{run}}/telemetry.sock']
[cluster]
mode = 'local'
executor = 'host'
[shadow]
enabled = false  # its first comparison would come after a minute
"""


class UeChannel(msgspec.Struct, frozen=True):
    """A UE's recorded uplink: its efficiency from each instant on, in seconds since the trace's begin."""

    at_s: tuple[float, ...]
    efficiency_bps_hz: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """A folder with all files of this part, and what is played into its daemon."""

    folder: Path
    messages: Sequence[UeReportBatch]
    tokens: int  # that each UE asks for

    @property
    def config(self) -> Path:
        """The daemon's configuration."""
        return self.folder / "cosched.toml"

    @property
    def checkpoint(self) -> Path:
        """Folder of the model's weights, which the UEs' process writes."""
        return self.folder / "models" / MODEL

    @property
    def environment(self) -> dict[str, str]:
        """What nodes' actors and UEs compute with: a thread of the CPU, for others may differ in the last bit."""
        return {
            "CUDA_VISIBLE_DEVICES": "",
            "COSCHED_HOST_MODELS": str(self.folder / "models"),
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "torch"),  # made on import, used for nothing
        }

    def channel(self, ue: str) -> UeChannel:
        """Return what one of UES has."""
        row = UES.index(ue)
        rows = [(m.at_ns * 1e-9, m.ul_efficiency_bps_hz[row]) for m in self.messages]
        known = [(at_s, value) for at_s, value in rows if value is not None]
        return UeChannel(*(tuple(column) for column in zip(*known, strict=True)))


def prepare(folder: Path, trace: Path, tokens: int = TOKENS) -> Stage:
    """Write the part's files into a new folder. Raises BadInput: the trace has not all of UES."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(config_file("demo", name), folder / name)
    (folder / "site.toml").write_text(config_file("demo", "site.toml").read_text().replace("{folder}", str(folder)))
    (folder / "cosched.toml").write_text(CONFIG.format(folder=folder))
    messages = tuple(_of_four(read_trace(trace).messages))
    if not messages:
        raise BadInput(f"{trace}: no radio reports of {', '.join(UES)}")
    stage = Stage(folder, messages, tokens)
    stage.checkpoint.mkdir(parents=True)
    return stage


def work(tokens: int) -> LlmSession:
    """Return what each UE asks for."""
    return LlmSession(
        model=MODEL, context_tokens=0, new_tokens=len(PROMPT), max_output_tokens=tokens, ttft_s=TTFT_S, tpot_s=TPOT_S,
        private=True,
    )  # fmt: skip


def _of_four(messages: Sequence[Message]) -> Iterator[UeReportBatch]:
    """Yield the rows of UES."""
    for message in messages:
        if isinstance(message, UeReportBatch) and set(UES) <= set(message.ue):
            rows = [message.ue.index(ue) for ue in UES]
            columns = {name: getattr(message, name) for name in COLUMNS}
            picked = {name: tuple(column[row] for row in rows) for name, column in columns.items() if column}
            yield msgspec.structs.replace(message, **picked)
