"""How models and seeds are written: `[LABEL=]URL[#NAME]`, `A:B`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

BASELINES = ("random", "oracle", "noop", "human")
LABEL = re.compile(r"([A-Za-z0-9._-]{1,40})=(.+)", re.DOTALL)
PRICE = re.compile(r"[0-9]{0,9}(?:[0-9]|\.[0-9]{1,9})")
MAX_SEEDS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """`[LABEL=]TARGET[#NAME]`, taken apart."""

    label: str | None
    target: str
    """A base URL that ends in a version path, a baseline, or `script:FILE`."""
    name: str | None
    """The model's name at the URL; None when the server shall be asked."""

    @property
    def is_url(self) -> bool:
        """Whether a server is behind it."""
        return self.target.startswith(("http://", "https://"))

    @property
    def baseline(self) -> str:
        """The baseline's name without its file; "" for a server."""
        return "" if self.is_url else self.target.partition(":")[0]

    @property
    def host(self) -> str:
        """The URL's host without its port; "" for a baseline."""
        return (urlsplit(self.target).hostname or "") if self.is_url else ""

    def under(self, label: str | None) -> str:
        """Write the spec with another label, or with none."""
        name = f"#{self.name}" if self.name else ""
        return f"{label}={self.target}{name}" if label else f"{self.target}{name}"


def parse_model(text: str) -> ModelSpec:
    """Read `[LABEL=]URL[#NAME]`, `[LABEL=]random|oracle|noop|human` or `[LABEL=]script:FILE`.

    Raises:
        ValueError: it is none of them.

    """
    labelled = LABEL.fullmatch(text)
    label, rest = (labelled[1], labelled[2]) if labelled else (None, text)
    target, _, name = rest.partition("#")
    if target in BASELINES or (target.startswith("script:") and len(target) > len("script:")):
        return ModelSpec(label=label, target=target, name=None)
    return ModelSpec(label=label, target=_base_url(target, text), name=name or None)


def _base_url(url: str, shown: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"model {shown!r}: {error}") from error
    del port
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(
            f"model {shown!r} is neither an http(s) URL nor one of {', '.join(BASELINES)}, "
            f"script:FILE"
        )
    if parts.username or parts.password or parts.query:
        raise ValueError(f"model {shown!r}: give the key by --api-key-env, not in the URL")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def parse_price(text: str) -> tuple[str | None, float, float]:
    """Read `[LABEL=]IN,OUT`, dollars per million tokens, as (label, in, out).

    Raises:
        ValueError: it is not that, or a price is negative.

    """
    label, equals, rest = text.rpartition("=")
    prices = rest.split(",")
    if len(prices) != 2 or not all(PRICE.fullmatch(price.strip()) for price in prices):
        raise ValueError(f"a price is [LABEL=]IN,OUT, in $ per million tokens, not {text!r}")
    return (label if equals else None), float(prices[0]), float(prices[1])


def parse_seeds(value: object) -> tuple[int, ...]:
    """Read `A:B` (B excluded), a comma list, or a sequence of whole numbers from 0, no repeats.

    Raises:
        ValueError: it is none of them, or empty.

    """
    if isinstance(value, str):
        ranges = [_seed_range(part.strip()) for part in value.split(",")]
        if sum(map(len, ranges)) > MAX_SEEDS:
            raise ValueError(f"at most {MAX_SEEDS} seeds, not {value!r}")
        seeds = [seed for part in ranges for seed in part]
    elif isinstance(value, Sequence) and all(type(seed) is int for seed in value):
        seeds = list(value)
    else:
        raise ValueError(f"seeds are A:B or a list of whole numbers, not {value!r}")
    if not seeds:
        raise ValueError("no seeds: nothing to play")
    if min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ValueError("seeds are whole numbers from 0 on, each once")
    return tuple(seeds)


def _seed_range(part: str) -> Sequence[int]:
    match = re.fullmatch(r"([0-9]{1,18})(?::([0-9]{1,18}))?", part)
    if match is None:
        raise ValueError(f"seeds are A:B or a list of whole numbers, not {part!r}")
    first = int(match[1])
    return range(first, int(match[2])) if match[2] else [first]
