"""A daemon of one's own: `cosched run` as a child process in a folder, ended with whoever started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from cosched.config.paths import Home
from cosched.errors import CoschedError

ENDING_S: Final = 10.0  # a daemon that was told to end takes less, also while its Ray starts; then it is killed
STEP_S: Final = 0.02  # between two looks for its socket
LAST_LINES: Final = 5  # of its log, in an error
INHERITED: Final = "COSCHED_KERNEL"  # of COSCHED_*, which configure another daemon


class DaemonEnded(CoschedError):
    """The daemon ended by itself."""


@dataclass(frozen=True, slots=True)
class Child(Home):
    """A running daemon, and where its things are."""

    process: asyncio.subprocess.Process

    async def listening(self) -> None:
        """Wait until its control socket is there."""
        socket = Path(self.control.removeprefix("ipc://"))
        while not socket.exists():  # noqa: ASYNC110, ASYNC240  # a file tells nobody that it is there
            await asyncio.sleep(STEP_S)

    async def unless_it_ends(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work; a daemon that ends meanwhile is the error. Raises DaemonEnded, and what the work raises."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self.ended())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=tasks.index, reverse=True):  # that it ended is the cause of all else
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

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
async def child(folder: Path, config: Path, environment: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """Start a daemon with a configuration, its state, sockets and log in `folder`; it is ended on the way out.

    It is in a session of its own, so Ctrl-C reaches only whoever started it; where that is killed, it ends in order.
    environment: variables besides this one's.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("COSCHED_") or k == INHERITED}
    clean.pop("NOTIFY_SOCKET", None)
    own = {**clean, **Home(folder).variables, **(environment or {})}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cosched.children.tether", str(os.getpid())),
            *(sys.executable, "-m", "cosched.cli.main", "run", "--config", str(config)),
            env=own, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    started = Child(folder, process)
    try:
        yield started
    finally:
        await started.stop()
