"""A published version as it is recorded: `manifest.json`, format `policy/1`. No weights here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from serve.errors import BadCheckpoint, StateError
from serve.wire import PolicyKind

FORMAT = "policy/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """One file of a version. `mtime_ns` tells cheaply that nobody has written to it since."""

    name: str
    size_bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInfo:
    """One published version of a policy."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    version: int
    kind: PolicyKind
    base: int
    """The full version that an engine must hold for it: its own, unless it is a LoRA."""
    parent: int | None
    """The version that it was trained from."""
    created: datetime
    digest: str
    """SHA-256 over the names and digests of its files; empty if its weights are elsewhere."""
    size_bytes: int
    files: tuple[PolicyFile, ...]
    path: Path | None
    """Where its files are; None for weights that are not here: an upstream's, or pruned ones."""
    source: str | None = None
    """Where it was published from."""
    metrics: dict[str, float] = field(default_factory=dict)
    git_sha: str | None = None
    probes: str = ""
    """SHA-256 of `probes.json`, which lies beside the manifest; empty without probes."""

    @property
    def label(self) -> str:
        """`NAME@VERSION`: how an engine's weights and adapters are labelled."""
        return f"{self.name}@{self.version}"

    @property
    def is_pruned(self) -> bool:
        """Whether its weights were here and are no more."""
        return self.path is None and bool(self.files)

    def is_same(self, other: "PolicyInfo") -> bool:
        """Whether both consist of the same bytes over the same base."""
        mine, theirs = (
            (info.digest, info.kind, info.base if info.kind is PolicyKind.LORA else 0)
            for info in (self, other)
        )
        return mine == theirs

    def can_be(self, draft: "PolicyInfo") -> bool:
        """Whether publishing the draft would bring nothing that is not here."""
        is_covered = draft.probes in ("", self.probes)
        return not self.is_pruned and is_covered and self.is_same(draft)


_INFO = TypeAdapter(PolicyInfo)


def dumps(info: PolicyInfo, path: str | None) -> str:
    """Return the manifest's text; `path` is relative to the manifest's own folder."""
    values: Mapping[str, Any] = _INFO.dump_python(info, mode="json")
    try:
        return json.dumps({"format": FORMAT, **values, "path": path}, indent=2, allow_nan=False)
    except ValueError as error:
        raise BadCheckpoint(f"{info.label}: expected finite numbers as metrics") from error


def load(file: Path) -> PolicyInfo:
    """Read a manifest; raise StateError."""
    try:
        values = json.loads(file.read_bytes())
        if values.pop("format") != FORMAT:
            raise ValueError(f"expected the format {FORMAT}")
        if values["path"] is not None:
            values["path"] = file.parent / values["path"]
        return _INFO.validate_python(values)
    except (OSError, ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"cannot read {file}: {error}") from error
