"""Puts the end of a stream, made by another engine, to the beginning that a client has. Pure.

The other engine goes on from token ids, a little before the cut. What it makes up to the cut must
be what the client has; from there on each event gets the form that the first engine's had.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from serve.front.migration.framing import Unjoinable
from serve.front.migration.tail import DATA, DONE, END, Event, Tail, decode

_MAX_HELD_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What one event adds to the completion."""

    text: str
    ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None
    fingerprint: str | None


class Seam:
    """One engine's share in a stream that another one began."""

    def __init__(self, tail: Tail) -> None:
        if tail.prompt_ids is None or tail.first is None:
            raise Unjoinable("the prompt's token ids were not sent")
        self._ask = tail.ask
        self._first = tail.first
        self._continuous = tail.continuous
        self._partial = tail.partial
        self._prompt_tokens = len(tail.prompt_ids)
        self._tokens, chars = tail.anchor
        self._prompt = [*tail.prompt_ids, *tail.ids[: self._tokens]]
        self._is_first = True
        self._ids_due: Sequence[int] = tail.ids[self._tokens :].tolist()
        self._text_due = tail.text[chars:]
        self._sent_tokens = len(tail.ids)
        self._held: _Piece | None = None
        self.done = False
        """Whether the engine said that this was all."""

    def body(self, engine_name: bytes) -> bytes:
        """Return the request for the rest; `engine_name` is a JSON string."""
        ask = self._ask
        if ask.max_tokens <= self._tokens:
            raise Unjoinable("there is no token left to make")
        fields = {
            **ask.carried,
            "model": msgspec.Raw(engine_name),
            "prompt": self._prompt,
            "temperature": 0,
            "max_tokens": ask.max_tokens - self._tokens,
            "min_tokens": max(0, ask.min_tokens - self._tokens),
            "stream": True,
            "return_token_ids": True,
        }
        return msgspec.json.encode(fields)

    @property
    def usage(self) -> tuple[int, int]:
        """Prompt and completion tokens, whoever made them."""
        return self._prompt_tokens, self._sent_tokens

    def take(self, raw: bytes) -> bytes:
        """Return what the client gets for an event of the engine's; raise Unjoinable."""
        if not raw.startswith(DATA):
            raise Unjoinable(f"expected an event, got {raw[:40]!r}")
        data = raw[len(DATA) :]
        if data == DONE:
            if self._ids_due or self._text_due or self._held is not None:
                raise Unjoinable("the next engine ended before the first one")
            self.done = True
            return self._must_fit(DATA + DONE + END)
        try:
            event = decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unjoinable(str(error)) from None
        if event.error is not None:
            raise Unjoinable("the next engine reported an error")
        if not event.choices:
            return self._must_fit(self._usage_event(event.system_fingerprint))
        piece = self._fresh(event)
        return b"" if piece is None else self._joined(piece)

    def ending(self, *, with_usage: bool) -> bytes:
        """Return what is missing after the completion's last event; it takes no engine."""
        usage = self._usage_event(None) if with_usage else b""
        return self._must_fit(usage + DATA + DONE + END)

    def _fresh(self, event: Event) -> _Piece | None:
        """Return what is new in an event, or None; what is not must be what the client has."""
        choice = event.choices[0]
        if self._is_first and choice.prompt_token_ids != self._prompt:
            raise Unjoinable("the next engine did not go on from the same token ids")
        self._is_first = False
        ids, text = choice.token_ids or [], choice.text or ""
        known_ids = min(len(ids), len(self._ids_due))
        known_chars = min(len(text), len(self._text_due))
        if (
            ids[:known_ids] != self._ids_due[:known_ids]
            or text[:known_chars] != self._text_due[:known_chars]
        ):
            raise Unjoinable("the next engine did not make the same tokens")
        self._ids_due = self._ids_due[known_ids:]
        self._text_due = self._text_due[known_chars:]
        ids, text = ids[known_ids:], text[known_chars:]
        if not ids and not text and choice.finish_reason is None:
            return None
        return _Piece(
            text=text,
            ids=ids,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            fingerprint=event.system_fingerprint,
        )

    def _joined(self, piece: _Piece) -> bytes:
        """Return the event, or keep it: one begun may have had more tokens in it than this."""
        held = self._held
        if held is not None:
            piece = replace(piece, text=held.text + piece.text, ids=held.ids + piece.ids)
        sent = self._fitting(self._event(piece))
        if sent is None:
            if len(piece.ids) > _MAX_HELD_TOKENS or piece.finish_reason is not None:
                raise Unjoinable("the event that was cut had other tokens in it")
            self._held = piece
            return b""
        self._held = None
        self._sent_tokens += len(piece.ids)
        return sent

    def _must_fit(self, event: bytes) -> bytes:
        sent = self._fitting(event)
        if sent is None:
            raise Unjoinable("the event that was cut is not like the next engine's")
        return sent

    def _fitting(self, event: bytes) -> bytes | None:
        """Return what of the event is not sent yet, or None if another one was begun."""
        if not event.startswith(self._partial):
            return None
        rest = event[len(self._partial) :]
        self._partial = b""
        return rest

    def _event(self, piece: _Piece) -> bytes:
        """Write an event as vLLM writes it, field for field."""
        choice: dict[str, Any] = {"index": 0}
        if self._ask.is_chat:
            choice["delta"] = {"content": piece.text}
        else:
            choice["text"] = piece.text
        choice |= {"logprobs": None, "finish_reason": piece.finish_reason}
        if not self._ask.is_chat:
            choice |= {"stop_reason": piece.stop_reason, "prompt_token_ids": None}
        elif piece.finish_reason is not None:
            choice["stop_reason"] = piece.stop_reason
        choice["token_ids"] = piece.ids
        usage = self._usage(len(piece.ids)) if self._continuous else None
        return self._encoded([choice], usage, piece.fingerprint)

    def _usage_event(self, fingerprint: str | None) -> bytes:
        return self._encoded([], self._usage(0), fingerprint)

    def _usage(self, more_tokens: int) -> dict[str, int]:
        """Count all tokens, whoever made them; what was cached where is nobody's to say now."""
        completion = self._sent_tokens + more_tokens
        return {
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": self._prompt_tokens + completion,
            "completion_tokens": completion,
        }

    def _encoded(
        self, choices: list[Any], usage: dict[str, int] | None, fingerprint: str | None
    ) -> bytes:
        event: dict[str, Any] = {
            "id": self._first.id,
            "object": "chat.completion.chunk" if self._ask.is_chat else "text_completion",
            "created": self._first.created,
            "model": self._first.model,
            "choices": choices,
        }
        if usage is not None:
            event["usage"] = usage
        if fingerprint is not None:
            event["system_fingerprint"] = fingerprint
        return DATA + msgspec.json.encode(event) + END
