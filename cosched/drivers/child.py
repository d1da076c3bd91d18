"""A daemon of one's own: `cosched run` as a child process in a folder, ended with whoever started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from cosched.errors import CoschedError

ENDING_S: Final = 5.0  # a daemon that was told to end takes less; then it is killed
LAST_LINES: Final = 5  # of its log, in an error
INHERITED: Final = "COSCHED_KERNEL"  # of COSCHED_*, which configure another daemon


class DaemonEnded(CoschedError):
    """The daemon ended by itself."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running daemon, and where its things are."""

    folder: Path
    process: asyncio.subprocess.Process

    @property
    def control(self) -> str:
        """Endpoint of its control socket."""
        return f"ipc://{self.folder}/run/control.sock"

    @property
    def telemetry(self) -> str:
        """Endpoint of its telemetry bus."""
        return f"ipc://{self.folder}/run/telemetry.sock"

    @property
    def captures(self) -> list[Path]:
        """What it recorded, in order."""
        return sorted((self.folder / "state" / "captures").glob("*.mcap"))

    def is_listening(self) -> bool:
        """Whether its control socket is there."""
        return Path(self.control.removeprefix("ipc://")).exists()

    async def ended(self) -> NoReturn:
        """Wait until it ends, then say so. Raises DaemonEnded with its exit code and the last lines of its log."""
        code = await self.process.wait()
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        lines = (self.folder / "log").read_text(errors="replace").splitlines()[-LAST_LINES:]
        raise DaemonEnded(f"the daemon ended by itself, {how}; its log ends: {' | '.join(lines) or '(empty)'}")

    async def stop(self) -> None:
        """Have it end in order: its capture is whole after that."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), ENDING_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


@contextlib.asynccontextmanager
async def child(folder: Path, config: Path) -> AsyncIterator[Child]:
    """Start a daemon with a configuration, its state, sockets and log in `folder`; it is ended on the way out.

    It is in a session of its own: Ctrl-C reaches only whoever started it.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("COSCHED_") or k == INHERITED}
    clean.pop("NOTIFY_SOCKET", None)
    folders = {"STATE_DIRECTORY": f"{folder}/state", "RUNTIME_DIRECTORY": f"{folder}/run"}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cosched.cli.main", "run", "--config", str(config)),
            env={**clean, **folders}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    started = Child(folder, process)
    try:
        yield started
    finally:
        await started.stop()
