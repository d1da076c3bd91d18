"""The daemon's folders: made where they are missing, and refused where somebody else could change what is in them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from cosched.errors import BadInput

DIR_MODE: Final = 0o750  # of folders made here
INNER_MODE: Final = 0o700
LOCK: Final = "daemon.lock"
NOBODY: Final = 65_534  # who owns, in a user namespace, what belongs to nobody in it

_taken: dict[Path, int] = {}  # folder -> descriptor of its lock, for life


def own(folder: Path) -> Path:
    """Make a folder, or check that it and those above it are ours or root's alone to change. Raises BadInput."""
    try:
        folder.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
        _check(folder, folder.stat(), is_above=False)
        _check(folder, folder.lstat(), is_above=False)  # a link of somebody else's may lead anywhere tomorrow
        for above in folder.resolve().parents:
            _check(above, above.stat(), is_above=True)
    except FileExistsError:
        raise BadInput(f"{folder}: a file is there; move it away, or choose another folder") from None
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}; make it for this user, or choose another folder") from None
    return folder


def _check(folder: Path, found: os.stat_result, *, is_above: bool) -> None:
    trusted = {0, os.geteuid()} | ({NOBODY} if is_above else set())
    if found.st_uid not in trusted:
        raise BadInput(f"{folder}: belongs to user {found.st_uid}, who could replace what is in it: chown it to "
                       f"{os.geteuid()}, or choose another folder")  # fmt: skip
    if stat.S_ISLNK(found.st_mode) or (is_above and found.st_mode & stat.S_ISVTX):
        return  # a link has no mode; in a sticky folder nobody moves what is another's
    if found.st_mode & stat.S_IWOTH:
        raise BadInput(f"{folder}: everybody may write to it: chmod o-w it, or choose another folder")
    if found.st_mode & stat.S_IWGRP and found.st_gid not in {0, os.getegid()} and not is_above:
        raise BadInput(f"{folder}: group {found.st_gid} may write to it: chmod g-w it, or choose another folder")


def take(folder: Path) -> None:
    """Lock a folder for the life of this process. Raises BadInput when another daemon has it."""
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        who = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
        os.close(handle)
        raise BadInput(
            f"{folder}: another daemon (process {who or 'unknown'}) uses it; end it, or set RUNTIME_DIRECTORY"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    _taken[folder] = handle


def give_back(folder: Path) -> None:
    """Let another daemon have a folder that was taken."""
    if (handle := _taken.pop(folder, None)) is not None:
        os.close(handle)


def fresh(folder: Path) -> Path:
    """Return an empty folder for us alone; what a daemon that was killed has left in it is removed. Raises BadInput."""
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        folder.mkdir(mode=INNER_MODE)
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}; remove it by hand") from None
    return folder
