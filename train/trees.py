"""Trees of settings, as YAML has them: a dotted key put in, and in words what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from train.errors import BadConfig


def put(tree: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401  # YAML
    """Set a dotted key, making the sections on its way."""
    *sections, last = key.split(".")
    at = tree
    for section in sections:
        below = at.get(section)
        if below is None:
            below = at[section] = {}
        if not isinstance(below, dict):
            raise BadConfig(f"{key}: {section} is a value, not a section")
        at = below
    at[last] = value


def complaint(error: ValidationError, path: Path | None) -> str:
    """Return one line per fault, by dotted key."""
    where = f"{path}: " if path else ""
    lines = []
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"])) or "config"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}{key}: no such key")
        elif fault["type"] == "missing":
            lines.append(f"{where}{key}: is missing")
        else:
            said = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where}{key}: {said}")
    return "\n".join(lines)
