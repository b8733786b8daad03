"""What the environment says, and the only place in train where the config comes from there.

`PALAESTRA_TRAIN__LEARN__STEPS=200` sets learn.steps, over the YAML file and below the command line;
the value is YAML. A file `.env` beside the call adds variables that are not set. EXPERIMENTER and
EXPERIMENT_NAME keep the volumes of people and of experiments apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from train.errors import BadConfig

PREFIX = "PALAESTRA_TRAIN__"
CONFIG = "PALAESTRA_TRAIN_CONFIG"
"""The config of the Modal app: JSON in its image, the path of a YAML file where it is deployed."""
COMMITS = "PALAESTRA_TRAIN_COMMITS"
"""The folder in which a container takes requests to commit the policies volume."""
NODE = "PALAESTRA_TRAIN_NODE"
"""Rank and number of machines, and the first one's address, in a container of several."""
SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY")
"""Keys that a job on Modal gets from the environment that starts it, where they are set there."""

_EXPERIMENT = ("EXPERIMENTER", "EXPERIMENT_NAME")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_UNNAMED = re.compile(r"[^A-Za-z0-9._-]+")


def load_dotenv(path: Path, environment: MutableMapping[str, str] | None = None) -> list[str]:
    """Put a file's `NAME=value` lines into the environment, but for what is set there already.

    Returns the names that were added. Quotes around a value are taken off, nothing is expanded.

    Raises:
        BadConfig: a line is no assignment; says which, and not what is in it.

    """
    target = os.environ if environment is None else environment
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"cannot read {path}: {type(error).__name__}") from None
    added = []
    for number, line in enumerate(lines, 1):
        said = line.strip()
        if not said or said.startswith("#"):
            continue
        found = _LINE.fullmatch(said)
        if found is None:
            raise BadConfig(f"{path}, line {number}: expected NAME=value")
        name, value = found[1], _value(found[2])
        if name not in target:
            target[name] = value
            added.append(name)
    return added


def settings(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what `PALAESTRA_TRAIN__A__B` variables say, by dotted key.

    Raises:
        BadConfig: a value is no YAML.

    """
    source = os.environ if environment is None else environment
    found = {}
    for name in sorted(source):
        if name.startswith(PREFIX) and len(name) > len(PREFIX):
            key = name.removeprefix(PREFIX).lower().replace("__", ".")
            try:
                found[key] = yaml.safe_load(source[name])
            except yaml.YAMLError as error:
                raise BadConfig(f"{name}: the value is no YAML: {error}") from None
    return found


def without_settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process whose config is resolved already."""
    source = os.environ if environment is None else environment
    return {name: value for name, value in source.items() if not name.startswith(PREFIX)}


def experiment(name: str, environment: Mapping[str, str] | None = None) -> str:
    """Fill the experiment's variables into a volume's name."""
    source = os.environ if environment is None else environment
    for variable in _EXPERIMENT:
        value = _UNNAMED.sub("-", source.get(variable, "")).strip("-") or "default"
        name = name.replace(f"{{{variable}}}", value)
    return name


def deployed() -> str | None:
    """Return what the Modal app's config variable holds, if anything."""
    return os.environ.get(CONFIG) or None


def commits() -> Path | None:
    """Return where a container takes requests to commit, inside one."""
    found = os.environ.get(COMMITS)
    return Path(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Which of several machines that train together this is."""

    rank: int
    size: int
    main: str
    """The first one's address."""

    def dump(self) -> str:
        """Return it as the variable has it."""
        return f"{self.rank} {self.size} {self.main}"


def node() -> Node | None:
    """Return which machine this is, where there are several."""
    told = os.environ.get(NODE, "").split()
    return Node(rank=int(told[0]), size=int(told[1]), main=told[2]) if told else None


def secret(name: str) -> str | None:
    """Return a variable that holds a secret, if it is set."""
    return os.environ.get(name) or None


def _value(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text.partition(" #")[0].rstrip()
