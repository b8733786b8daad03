"""What the environment says: read here, and nowhere else in evalkit.

A file `.env` beside the call adds variables that are not set. EXPERIMENTER and EXPERIMENT_NAME keep
the volumes of people and of experiments apart.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from evalkit.errors import BadConfig


def load_env_file(path: Path) -> None:
    """Set the environment variables of a `.env` file that are not set; one that is absent is fine.

    A line is NAME=VALUE, maybe after `export`; quotes around the value and lines after # go.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: expected UTF-8: {error}") from error
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and name.strip().isidentifier():
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
            os.environ.setdefault(name.strip(), value[1:-1] if quoted else value)


def runs_volume() -> str:
    """Return the volume on Modal that keeps runs: one for each experimenter and experiment."""
    named = (os.environ.get(name, "") for name in ("EXPERIMENTER", "EXPERIMENT_NAME"))
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "default" for name in named]
    return "-".join(["palaestra-runs", *parts])


def volumes_root() -> str:
    """Return the folder of a container below which volumes are mounted."""
    return os.environ.get("PALAESTRA_VOLUMES_ROOT") or "/palaestra"


def cache_path() -> Path:
    """Return the folder for what can be computed again: $PALAESTRA_CACHE, or the user's cache."""
    from platformdirs import user_cache_path  # noqa: PLC0415 - not for every reader

    return Path(os.environ.get("PALAESTRA_CACHE") or user_cache_path("palaestra"))


def variable(name: str) -> str:
    """Return a variable that the user named, "" where it is not set."""
    return os.environ.get(name, "").strip()


def for_children(**more: str) -> dict[str, str]:
    """Return the environment for a process of ours."""
    return {**os.environ, **more}
