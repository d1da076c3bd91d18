"""Writing TOML: the standard library only reads it, and a trace carries its site as text."""

from __future__ import annotations

import json
from typing import Any


def dumps(table: dict[str, Any], path: str = "") -> str:
    """Return TOML text of nested tables, arrays of tables and scalars; `path` is the header of `table` itself."""
    plain = [(k, v) for k, v in table.items() if not _is_table(v) and not _is_tables(v)]
    lines = [f"{_key(k)} = {_value(v)}\n" for k, v in plain]
    for key, value in table.items():
        header = f"{path}.{_key(key)}" if path else _key(key)
        if _is_table(value):
            lines.append(f"\n[{header}]\n{dumps(value, header)}")
        elif _is_tables(value):
            lines.extend(f"\n[[{header}]]\n{dumps(item, header)}" for item in value)
    return "".join(lines)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare else json.dumps(key)


def _value(value: object) -> str:
    """Write a scalar or a list of them; JSON's strings, finite numbers and booleans are TOML's too."""
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
