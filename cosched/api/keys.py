"""CURVE keys in files: own key pairs, and the daemon's list of identities that it lets in (docs/security.md).

A folder holds `<name>.key` (a pair, mode 0600) for each key that is used on this machine, and `allowed.toml` (public
keys and roles, mode 0644) for the daemon. Both are TOML. Keys are Z85 text (RFC 32), as ZeroMQ prints them.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cosched.api.access import Allowed, Identity, IdentityLimits
from cosched.errors import BadInput

T = TypeVar("T")

SECRET_MODE: Final = 0o600
LIST_MODE: Final = 0o644
SCOPES: Final = ("ues", "cells", "nodes", "links", "tasks")
ALLOWED: Final = "allowed.toml"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HEAD: Final = (
    "# Who may connect to the daemon (docs/security.md). `cosched keys allow` writes it; to revoke, delete.\n"
)
_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # 32 bytes in RFC 32's alphabet


class KeyPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A CURVE key pair, as kept in `<name>.key`."""

    v: int = 1
    name: str
    public: str
    secret: str


def folder() -> Path:
    """Where keys lie by default: $COSCHED_KEYS, else the user's configuration folder (XDG base directories)."""
    if chosen := os.environ.get("COSCHED_KEYS"):
        return Path(chosen)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "cosched" / "keys"


def check_name(name: str) -> str:
    """Return the name. Raises BadInput for one that is no file name and no user id."""
    if _NAME.fullmatch(name) is None:
        raise BadInput(f"'{name}': a key's name has 1 to 63 letters, digits, dots, dashes and underscores")
    return name


def check_public(public: str) -> str:
    """Return the key. Raises BadInput when it is no Z85 text of 32 bytes."""
    if _Z85.fullmatch(public) is None:
        raise BadInput(f"'{public}': a public key has 40 characters, as 'cosched keys new' prints it")
    return public


def write_pair(where: Path, pair: KeyPair) -> Path:
    """Write `<name>.key` with mode 0600; the folder is made with 0700. Raises BadInput when the file is there."""
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = where / f"{check_name(pair.name)}.key"
    text = f'v = 1\nname = "{pair.name}"\npublic = "{pair.public}"\nsecret = "{pair.secret}"\n'
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    except FileExistsError:
        raise BadInput(f"{path}: there is a key of that name; remove the file first to replace it") from None
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
    return path


def read_pair(path: Path) -> KeyPair:
    """Read a key pair. Raises BadInput when it is missing, wrong, or readable by others."""
    text = _read(path)
    if path.stat().st_mode & 0o077 and not _is_credential(path):
        raise BadInput(f"{path}: others can read this secret key: chmod 600 it")
    pair = _parse(text, path, KeyPair)
    for key in (pair.public, pair.secret):
        if _Z85.fullmatch(key) is None:
            raise BadInput(f"{path}: a key has 40 characters of Z85; write a new one with 'cosched keys new'")
    return pair


def _is_credential(path: Path) -> bool:
    """Whether systemd put it there (LoadCredential=): the group bits are then the mask of an ACL for our user alone."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(credentials) and path.resolve().is_relative_to(Path(credentials or "/").resolve())


def read_allowed(path: Path) -> tuple[Identity, ...]:
    """Read the list of identities; a missing file is an empty list. Raises BadInput when it is wrong."""
    if not path.exists():
        return ()
    allowed = _parse(_read(path), path, Allowed)
    identities = allowed.allow
    for identity in identities:
        check_name(identity.name)
        check_public(identity.public)
    for what, values in (("name", [i.name for i in identities]), ("key", [i.public for i in identities])):
        if len(set(values)) < len(values):
            raise BadInput(f"{path}: two entries have the same {what}")
    return identities


def write_allowed(path: Path, identities: Iterable[Identity]) -> None:
    """Replace the list in one step: a reader sees the old one or the new one, whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = f"{_HEAD}v = 1\n" + "".join(_entry(identity) for identity in identities)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(LIST_MODE)
    fresh.replace(path)


def allow(path: Path, identity: Identity) -> None:
    """Add an identity, or replace the one of that name. Raises BadInput, also when the key has another name."""
    check_name(identity.name)
    check_public(identity.public)
    for pattern in (p for name in SCOPES for p in getattr(identity, name)):
        if not pattern.isprintable():
            raise BadInput(f"{pattern!r}: a pattern has no control characters")
    others = [i for i in read_allowed(path) if i.name != identity.name]
    for other in others:
        if other.public == identity.public:
            raise BadInput(f"{path}: this key is already allowed as '{other.name}'; an identity has one role")
    write_allowed(path, [*others, identity])


def _entry(identity: Identity) -> str:
    lines = ["", "[[allow]]", f'name = "{identity.name}"', f'public = "{identity.public}"', f'role = "{identity.role}"']
    scopes = {name: getattr(identity, name) for name in SCOPES}
    # a JSON list of text is TOML as well
    lines += [f"{name} = {msgspec.json.encode(found).decode()}" for name, found in scopes.items() if found]
    limits, default = msgspec.structs.asdict(identity.limits), msgspec.structs.asdict(IdentityLimits())
    if changed := {name: value for name, value in limits.items() if value != default[name]}:
        lines += ["[allow.limits]", *(f"{name} = {value}" for name, value in changed.items())]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not text") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; 'cosched keys new NAME' makes a key") from None


def _parse(text: str, path: Path, kind: type[T]) -> T:
    try:
        return msgspec.convert(tomllib.loads(text), kind)
    except msgspec.ValidationError as error:
        raise BadInput(f"{path}: {error}; docs/security.md has the format") from None
    except (ValueError, RecursionError):  # the former of numbers of thousands of digits too
        raise BadInput(f"{path}: not TOML") from None  # without its text: it may be a secret
