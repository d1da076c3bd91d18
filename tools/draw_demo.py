#!/usr/bin/env python3
"""Draw docs/figures/demo.svg: what a terminal shows of the demo's cluster part, some seconds after a node was killed.

python tools/draw_demo.py docs/figures/demo.svg
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tempfile
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from cosched.cli.demo_cluster import styled
from cosched.demo.play import Played, play, started
from cosched.demo.stage import prepare
from cosched.resources import sample_trace

AFTER_S = 3.0  # after the kill: its sessions have been moved and go on
COLUMNS = 112
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # no font from elsewhere


async def drawn() -> Text:
    """Play the part; return the picture."""
    frames: list[Text] = []

    def show(_: bool, played: Played) -> None:
        if played.victim and time.monotonic() > played.killed_s + AFTER_S and not frames:
            frames.append(styled(played))

    with tempfile.TemporaryDirectory(prefix="cosched-demo-", ignore_cleanup_errors=True) as folder:
        async with started(prepare(Path(folder) / "cluster", sample_trace())) as cluster:
            await play(cluster, show)
    return frames[0]


def main() -> None:
    """Write the file that is named."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(asyncio.run(drawn()))
    svg = console.export_svg(title="cosched demo", theme=MONOKAI, code_format=FORMAT, unique_id="t")
    Path(sys.argv[1]).write_text(svg.replace("Fira Code", "monospace"))


if __name__ == "__main__":
    main()
