"""The words that cross the wire: headers, policy addresses, constraints, error objects. No I/O.

Everything else in serve may import this, and so may clients: it needs only the standard library.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

SESSION_HEADER = "X-Session-ID"
"""One per episode: the gateway's affinity key."""
REQUEST_ID_HEADER = "X-Request-ID"
POLICY_VERSION_HEADER = "X-Policy-Version"
"""In answers: the version of the weights that the request was dispatched to."""
POLICY_VERSION_END_HEADER = "X-Policy-Version-End"
"""In answers, or their trailers: the version that finished it, where it is another one."""
POLICY_CONSTRAINT_HEADER = "X-Policy-Constraint"
"""In requests: `>=7` admits version 7 and later ones, `==7` only version 7."""
REPLICA_HEADER = "X-Replica"
"""In answers: which replica made it."""

KEY_PREFIX = "ak_"
"""How every API key of ours begins."""

MOST_PROBES = 64
MOST_PROBE_TOKENS = 4096
"""Of one probe."""
MOST_PROBES_TOKENS = 16_384
"""Of all probes of a version together, so that they fit into an administrative request."""
_MOST_TOKEN_ID = (1 << 31) - 1

_NAME = re.compile(r"[A-Za-z0-9/][A-Za-z0-9._:/-]{0,199}")
_REFERENCE = re.compile(r"(?P<name>[^@]+)(?:@(?P<version>[0-9]{1,9}))?")
_CONSTRAINT = re.compile(r"\s*(?P<sign>>=|==)\s*(?P<version>[0-9]{1,9})\s*")


class Scope(StrEnum):
    """What a key may do. A key has one or more."""

    INFER = "infer"
    """Completions, embeddings, tokens, and the list of models."""
    EVAL = "eval"
    """All that infer may, named for evaluations so that their use is counted apart."""
    TRAIN = "train"
    """Token-in, token-out generation besides."""
    ADMIN = "admin"
    """Everything: publish, roll back, see the pool, the usage and the metrics."""


class SwapMode(StrEnum):
    """What becomes of requests in flight when a replica changes its weights."""

    WAIT = "wait"
    """They finish on the old weights first; new ones go elsewhere or are held."""
    KEEP = "keep"
    """They go on with the new weights, and their answers say so."""
    ABORT = "abort"
    """They end at once, with what they have and the finish_reason `abort`."""


class PolicyKind(StrEnum):
    """What a published version consists of."""

    FULL = "full"
    """All the weights, in Hugging Face's layout."""
    LORA = "lora"
    """An adapter in PEFT's layout, over a full version of the same name."""


class BadReference(ValueError):
    """A policy's address or constraint that cannot be read; says what was expected."""


class BadProbes(ValueError):
    """Probes that cannot be compared with anything; says what was expected."""


@dataclass(frozen=True, slots=True)
class PolicyRef:
    """A policy, or one version of it: `NAME` is the newest, `NAME@7` exactly version 7."""

    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAME` or `NAME@7`; raise BadReference."""
        found = _REFERENCE.fullmatch(text)
        if found is None or not _NAME.fullmatch(found["name"]):
            raise BadReference(f"expected NAME or NAME@VERSION, got {text!r}")
        version = found["version"]
        return cls(found["name"], None if version is None else int(version))

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class VersionConstraint:
    """Which versions may answer; without bounds, any."""

    minimum: int = 0
    exact: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `>=7` or `==7`; raise BadReference."""
        found = _CONSTRAINT.fullmatch(text)
        if found is None:
            raise BadReference(f"expected >=VERSION or ==VERSION, got {text!r}")
        version = int(found["version"])
        return cls(minimum=version) if found["sign"] == ">=" else cls(exact=version)

    def admits(self, version: int) -> bool:
        """Whether an answer of that version is one."""
        return version >= self.minimum and self.exact in (None, version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Sequences, and how likely their trainer finds each token of them given those before it.

    A replica serves a version that has probes only after it has computed the same. Raises
    BadProbes.
    """

    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    """Nats; for each sequence one less than it has tokens, because the first has none."""
    tolerance: float
    """The largest difference of a logprob that is none, in nats."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.tokens) <= MOST_PROBES:
            raise BadProbes(f"expected 1 to {MOST_PROBES} probes, got {len(self.tokens)}")
        if len(self.logprobs) != len(self.tokens):
            raise BadProbes(f"{len(self.tokens)} probes have logprobs for {len(self.logprobs)}")
        for number, (tokens, logprobs) in enumerate(zip(self.tokens, self.logprobs, strict=True)):
            _check_probe(f"probe {number}", tokens, logprobs)
        if (total := sum(map(len, self.tokens))) > MOST_PROBES_TOKENS:
            raise BadProbes(f"expected at most {MOST_PROBES_TOKENS} tokens in all, got {total}")
        if not 0 < self.tolerance < math.inf:
            raise BadProbes(f"expected a tolerance above 0, got {self.tolerance}")

    def to_json(self) -> dict[str, Any]:
        """Return it as `from_json` reads it."""
        return {
            "tokens": [list(tokens) for tokens in self.tokens],
            "logprobs": [list(logprobs) for logprobs in self.logprobs],
            "tolerance": self.tolerance,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what came as JSON; raise BadProbes."""
        try:
            return cls(
                tokens=tuple(tuple(tokens) for tokens in values["tokens"]),
                logprobs=tuple(tuple(map(float, row)) for row in values["logprobs"]),
                tolerance=float(values["tolerance"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, BadProbes):
                raise
            raise BadProbes(f"expected tokens, logprobs and tolerance: {error!r}") from error


def _check_probe(which: str, tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> None:
    if not 2 <= len(tokens) <= MOST_PROBE_TOKENS:
        raise BadProbes(f"{which}: expected 2 to {MOST_PROBE_TOKENS} tokens, got {len(tokens)}")
    if not all(type(token) is int and 0 <= token <= _MOST_TOKEN_ID for token in tokens):
        raise BadProbes(f"{which}: expected token ids from 0 on")
    if len(logprobs) != len(tokens) - 1:
        raise BadProbes(
            f"{which}: {len(tokens)} tokens have {len(tokens) - 1} logprobs, got {len(logprobs)}"
        )
    if not all(map(math.isfinite, logprobs)):
        raise BadProbes(f"{which}: expected finite logprobs")


def error_object(
    message: str, *, status: int, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return OpenAI's error object; `code` is a machine-readable word, else the status."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code or status}}


def error_body(
    message: str, *, status: int, kind: str, code: str | None = None, param: str | None = None
) -> bytes:
    """Return OpenAI's error object as JSON."""
    return json.dumps(
        error_object(message, status=status, kind=kind, code=code, param=param)
    ).encode()
