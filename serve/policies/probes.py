"""A version's probes on disk, `probes.json`, format `probes/1`. No weights and no engine here."""

import hashlib
import json
from pathlib import Path

from serve.errors import BadCheckpoint
from serve.wire import BadProbes, Probes

PROBES = "probes.json"
_FORMAT = "probes/1"


def dumps(probes: Probes) -> str:
    """Return the file's text."""
    return json.dumps({"format": _FORMAT, **probes.to_json()}, allow_nan=False) + "\n"


def digest_of(probes: Probes | None) -> str:
    """Return the SHA-256 of the file's text; empty without probes."""
    return hashlib.sha256(dumps(probes).encode()).hexdigest() if probes else ""


def load(file: Path, sha256: str) -> Probes:
    """Read probes that were published with this digest; raise BadCheckpoint."""
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BadCheckpoint(f"{file} has been changed since it was published")
        values = json.loads(data)
        if values["format"] != _FORMAT:
            raise BadCheckpoint(f"{file}: expected the format {_FORMAT}, got {values['format']!r}")
        return Probes.from_json(values)
    except (OSError, BadProbes, ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"cannot read {file}: {error}") from error
