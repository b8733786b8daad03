"""A served model as a policy: POST /chat/completions on any OpenAI-compatible URL.

The hot path. Request bodies are joined from bytes that were serialised once; the `openai` SDK is
not used because its cost grows with the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from sys import intern
from typing import Any, TypeVar

import orjson

from evalkit.errors import CallFailed, Failure
from evalkit.play.calls import post
from evalkit.play.gate import Gate
from evalkit.play.limits import Patience
from evalkit.play.policy import Ask, Completion, Policy
from evalkit.play.transport import Response, Transport

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What the server is asked to do with the prompt. None leaves it to the server."""

    temperature: float | None = 0.1
    top_p: float | None = None
    max_tokens: int | None = 256
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request's body, as they are."""

    def fields(self) -> dict[str, Any]:
        """Return the request's fields beyond model, messages and seed."""
        named = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
        }
        return {**{k: v for k, v in named.items() if v is not None}, **self.extra_body}


class ChatPolicy(Policy):
    """Plays a model behind an OpenAI-compatible URL."""

    def __init__(
        self,
        transport: Transport,
        *,
        model: str,
        sampling: Sampling,
        patience: Patience,
        gate: Gate | None = None,
    ) -> None:
        self.gate = gate
        self._call = self._attempt if gate is None else partial(self._admitted, gate)
        self._transport = transport
        self._patience = patience
        self._model = model
        self._head = b'{"model":%b,"messages":[' % orjson.dumps(model)
        self._sampling = sampling
        self._tails: dict[str | None, bytes] = {}

    async def complete(self, ask: Ask) -> Completion:
        """Answer `ask`, trying again within the limits of `Patience`."""
        return await self._patience.call(partial(self._call, ask))

    def body(self, ask: Ask) -> bytes:
        """Return the request's body: the same bytes for the same `ask`, whatever else goes on."""
        tail = self._tails.get(ask.pattern)
        if tail is None:
            tail = self._tails[ask.pattern] = self._tail(ask.pattern)
        messages = b",".join([message.json for message in ask.messages])
        return b'%b%b],"seed":%d%b' % (self._head, messages, ask.seed, tail)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    def _tail(self, pattern: str | None) -> bytes:
        fields = self._sampling.fields()
        if pattern is not None:
            fields["structured_outputs"] = {"regex": pattern}
        return b"," + orjson.dumps(fields)[1:] if fields else b"}"

    async def _admitted(self, gate: Gate, ask: Ask, number: int) -> Completion:
        return await gate.call(ask.turn, partial(self._attempt, ask, number))

    async def _attempt(self, ask: Ask, number: int) -> Completion:
        response = await post(
            self._transport,
            "/chat/completions",
            partial(self.body, ask),
            ask,
            attempt=number,
            model=self._model,
            timeout_s=self._patience.limits.timeout_s,
        )
        return read_completion(response, number)


def read_completion(response: Response, attempts: int) -> Completion:
    """Read a chat completion.

    Raises:
        CallFailed: `BAD_REPLY`, when the body is not one.

    """
    try:
        raw = orjson.loads(response.body)
        choice = raw["choices"][0]
        message = choice["message"]
        usage = raw.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return Completion(
            text=_text(message.get("content")),
            reasoning=_text(message.get("reasoning") or message.get("reasoning_content")) or None,
            finish_reason=intern(_of(str, choice.get("finish_reason")) or "") or None,
            refusal=bool(message.get("refusal")),
            prompt_tokens=_of(int, usage.get("prompt_tokens")),
            completion_tokens=_of(int, usage.get("completion_tokens")),
            cached_tokens=_of(int, details.get("cached_tokens")),
            model=_of(str, raw.get("model")),
            policy_version=response.headers.get("x-policy-version"),
            elapsed_s=response.elapsed_s,
            attempts=attempts,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        start = response.body[:200].decode("utf-8", "replace")
        raise CallFailed(
            Failure.BAD_REPLY, f"not a chat completion ({error!r}): {start}", status=200
        ) from error


def _text(value: object) -> str:
    """Return a message's content as text: null is empty, a list of parts is joined."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(part.get("text", "") for part in value if isinstance(part, dict))
    raise TypeError(f"content is {type(value).__name__}")


def _of(kind: type[T], value: object) -> T | None:
    """Return `value` where it is what a server should say there; None for anything else."""
    return value if isinstance(value, kind) else None
