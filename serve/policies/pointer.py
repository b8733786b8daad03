"""The file that says which version a policy's name means, and how replicas take it up."""

import json
from dataclasses import dataclass
from pathlib import Path

from serve.errors import StateError
from serve.policies import disk
from serve.policies.volume import Shared, VolumeFailed
from serve.wire import SwapMode

LATEST = "latest"

_FORMAT = "latest/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """Where a name points."""

    version: int
    newest: int
    """The newest version that the name has ever meant."""
    swap: SwapMode = SwapMode.WAIT
    """What becomes of requests in flight, on replicas of gateways that only follow."""


def read(folder: Path) -> Pointer | None:
    """Return a policy's pointer, None if it has none; raise StateError."""
    try:
        values = json.loads((folder / LATEST).read_bytes())
        if values["format"] != _FORMAT:
            raise ValueError(f"expected the format {_FORMAT}")
        return Pointer(
            version=int(values["version"]),
            newest=int(values["newest"]),
            swap=SwapMode(values.get("swap", SwapMode.WAIT)),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"cannot read {folder / LATEST}: {error}") from error


def move(folder: Path, to: Pointer, shared: Shared) -> None:
    """Let a name mean another version, for everybody; where that fails it means what it did."""
    before = read(folder)
    _write(folder, to)
    try:
        shared.commit(f"{folder.name}'s new version {to.version}")
    except VolumeFailed as error:
        if before is None:
            (folder / LATEST).unlink()
        else:
            _write(folder, before)
        stays = "nothing yet" if before is None else f"version {before.version}"
        raise VolumeFailed(
            f"{error}. The version's files are there, but the name still means {stays}: try again"
        ) from error


def _write(folder: Path, pointer: Pointer) -> None:
    values = {"format": _FORMAT, "version": pointer.version, "newest": pointer.newest}
    if pointer.swap is not SwapMode.WAIT:
        values["swap"] = pointer.swap.value
    disk.replace(folder / LATEST, json.dumps(values) + "\n")
