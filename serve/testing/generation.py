"""One answer in the making: a token a step, each with the weights of its moment. No I/O."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import orjson

from serve.testing.tokens import WORDS
from serve.testing.weights import Served, Weights

_WORD: Final = re.compile(r"\s*\S+")
ABORT: Final = b"abort"


@dataclass(frozen=True, slots=True)
class Finished:
    """A reply after stop strings and max_tokens had their say."""

    text: str
    pieces: tuple[str, ...]
    """The text, a token each."""
    encoded: bytes
    """The text as a JSON string."""
    finish_reason: bytes
    stop_reason: bytes


@lru_cache(maxsize=4096)
def finish(text: str, limit: int, stops: tuple[str, ...], keep_stop: bool) -> Finished:
    """Cut the text at the first stop string and then to `limit` tokens."""
    finish_reason, stop_reason = "stop", None
    found = [(text.index(stop), stop) for stop in stops if stop in text]
    if found:
        start, stop_reason = min(found)
        text = text[: start + len(stop_reason) * keep_stop]
    pieces = _WORD.findall(text)
    if len(pieces) > limit:
        pieces, finish_reason, stop_reason = pieces[:limit], "length", None
        text = "".join(pieces)
    elif pieces:
        pieces[-1] += text[sum(map(len, pieces)) :]
    elif text:
        pieces = [text]
    return Finished(
        text, tuple(pieces), orjson.dumps(text), finish_reason.encode(), orjson.dumps(stop_reason)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request asks for, whichever route it came by."""

    request: dict[str, Any]
    model: str
    subject: bytes
    """What the reply is a function of, apart from the seed and the weights."""
    prompt_ids: list[int]
    is_tokens: bool = False
    """Whether the prompt came as ids, which may end in the middle of a reply."""
    seed: int = 0
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    keep_stop: bool = False
    stream: bool = False
    logprobs: int | None = None
    """How many other tokens to show at each; None is no logprobs at all."""
    wants_ids: bool = False

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with how many tokens there were."""
        return bool((self.request.get("stream_options") or {}).get("include_usage"))

    @property
    def continuous_usage(self) -> bool:
        """Whether every event says how many tokens there are."""
        options = self.request.get("stream_options") or {}
        return self.include_usage and bool(options.get("continuous_usage_stats"))


class Generation:
    """What was made of an answer so far, and what is still to be made."""

    __slots__ = (
        "_plan",
        "_replan",
        "_served",
        "_weights",
        "ask",
        "cached_tokens",
        "digest",
        "finish_reason",
        "logprobs",
        "pieces",
        "spans",
        "stop_reason",
    )

    def __init__(
        self,
        ask: Ask,
        served: Served,
        replan: Callable[[Weights], Finished],
        digest: str,
    ) -> None:
        self.ask = ask
        self.digest = digest
        """What the answer's id is made of."""
        self.pieces: list[str] = []
        self.logprobs: list[float] = []
        self.spans: list[tuple[str, int, int]] = []
        """Which label the weights went by: label, first token, the one after the last."""
        self.finish_reason: bytes | None = None
        self.stop_reason = b"null"
        self.cached_tokens: int | None = None
        self._served = served
        self._replan = replan
        self._weights = served.weights_of(ask.model) or served.base
        self._plan = replan(self._weights)

    @property
    def is_over(self) -> bool:
        """Whether no token is still to come."""
        return self.finish_reason is not None

    @property
    def left(self) -> int:
        """How many tokens are still to come if the weights stay."""
        return len(self._plan.pieces) - len(self.pieces)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    def ids(self, start: int = 0) -> list[int]:
        """Return the tokens made, from number `start` on."""
        return WORDS.ids(self.pieces[start:])

    def prompt_logprobs(self) -> list[float]:
        """Return how likely the weights say that each token of the prompt but the first is."""
        return prompt_logprobs(self._weights, self.ask.prompt_ids)

    def step(self) -> None:
        """Make one token if there is one to make, and see whether it was the last."""
        weights = self._served.weights_of(self.ask.model) or self._weights
        if weights is not self._weights:
            self._weights = weights
            self._plan = self._replan(weights)
        plan, at = self._plan, len(self.pieces)
        if at < len(plan.pieces):
            self.pieces.append(plan.pieces[at])
            self._label(at)
            if self.ask.logprobs is not None:
                self.logprobs.append(_logprob(plan.pieces[at], weights))
        if at + 1 >= len(plan.pieces):
            self.finish_reason = plan.finish_reason
            self.stop_reason = plan.stop_reason

    def abort(self) -> None:
        """End it here."""
        self.finish_reason = ABORT

    def _label(self, at: int) -> None:
        label = self._served.label
        if self.spans and self.spans[-1][0] == label:
            self.spans[-1] = (label, self.spans[-1][1], at + 1)
        else:
            self.spans.append((label, at, at + 1))


def prompt_logprobs(weights: Weights, tokens: Sequence[int]) -> list[float]:
    """Return how likely weights say that each token but the first is, given those before it."""
    digest = blake2b(weights.salt, digest_size=8)
    found = []
    for token_id in tokens:
        digest.update(b"%d," % token_id)
        found.append(-(int.from_bytes(digest.digest()) % 2000 + 1) / 1000)
    return found[1:]


def _logprob(piece: str, weights: Weights) -> float:
    """Return how likely these weights say that the token was."""
    (token_id,) = WORDS.ids((piece,))
    return -((token_id ^ int.from_bytes(weights.salt)) % 2000 + 1) / 1000
