"""How answers are written: whole, and as streams of events, in the shapes of vLLM 0.32. Pure."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

import orjson

from serve.testing.asks import read_chat, read_text
from serve.testing.generation import Ask, Generation
from serve.testing.plain import CREATED, DONE, FINGERPRINT
from serve.testing.tokens import WORDS


class Form(ABC):
    """One way to ask and to be answered. Holds nothing of any one request."""

    @abstractmethod
    def read(self, request: dict[str, Any]) -> Ask:
        """Return what a request asks for; raise Refusal."""

    @abstractmethod
    def whole(self, made: Generation) -> bytes:
        """Return the body of a whole answer."""

    def opening(self, made: Generation) -> bytes:  # noqa: ARG002  # most have none
        """Return the events before the first token."""
        return b""

    @abstractmethod
    def event(self, made: Generation, start: int) -> bytes:
        """Return the event for the tokens from number `start` on; there may be none of them."""

    @abstractmethod
    def closing(self, made: Generation) -> bytes:
        """Return the events after the last token."""


class OpenAI(Form):
    """What chats and completions have in common."""

    prefix: ClassVar[str]
    """What ids begin with."""
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    @abstractmethod
    def content(self, made: Generation) -> dict[str, Any]:
        """Return the part of a whole choice that holds the text."""

    @abstractmethod
    def logprobs(self, made: Generation, start: int) -> dict[str, Any]:
        """Return the logprobs of the tokens from number `start` on."""

    def whole(self, made: Generation) -> bytes:
        """Write one choice."""
        ask = made.ask
        choice = {
            "index": 0,
            **self.content(made),
            "logprobs": None if ask.logprobs is None else self.logprobs(made, 0),
            "finish_reason": _text(made.finish_reason),
            "stop_reason": orjson.loads(made.stop_reason),
        }
        if ask.wants_ids:
            choice["token_ids"] = made.ids()
        return orjson.dumps(self._head(made, self.whole_object) | self.tail(made, choice))

    def tail(self, made: Generation, choice: dict[str, Any]) -> dict[str, Any]:
        """Return what follows the head of a whole answer."""
        return {
            "choices": [choice],
            "system_fingerprint": FINGERPRINT,
            "usage": usage(made, is_whole=True),
        }

    def closing(self, made: Generation) -> bytes:
        """Write the usage if it was asked for."""
        if not made.ask.include_usage:
            return DONE
        more = {"choices": [], "usage": usage(made), "system_fingerprint": FINGERPRINT}
        return sse(self._head(made, self.chunk_object) | more) + DONE

    def chunk(self, made: Generation, choice: dict[str, Any], **more: object) -> bytes:
        """Write an event with one choice."""
        if made.ask.continuous_usage:
            more["usage"] = usage(made)
        head = self._head(made, self.chunk_object)
        return sse({**head, "choices": [choice], **more})

    def _head(self, made: Generation, kind: str) -> dict[str, Any]:
        return {
            "id": self.prefix + made.digest,
            "object": kind,
            "created": CREATED,
            "model": made.ask.model,
        }


class Chat(OpenAI):
    """/v1/chat/completions."""

    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def read(self, request: dict[str, Any]) -> Ask:
        """Read a conversation."""
        return read_chat(request)

    def content(self, made: Generation) -> dict[str, Any]:
        """Return the message."""
        message = {"role": "assistant", "content": made.text, "refusal": None, "reasoning": None}
        return {"message": message}

    def tail(self, made: Generation, choice: dict[str, Any]) -> dict[str, Any]:
        """Put the prompt's ids beside the choices."""
        ids = {"prompt_token_ids": made.ask.prompt_ids} if made.ask.wants_ids else {}
        return super().tail(made, choice) | ids

    def opening(self, made: Generation) -> bytes:
        """Say whose turn it is."""
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        ids = {"prompt_token_ids": made.ask.prompt_ids} if made.ask.wants_ids else {}
        return self.chunk(made, choice, **ids)

    def event(self, made: Generation, start: int) -> bytes:
        """Write a piece of the message."""
        return self.delta(made, start, {"content": "".join(made.pieces[start:])})

    def delta(
        self, made: Generation, start: int, delta: dict[str, Any], *, is_last: bool = True
    ) -> bytes:
        """Write a change of the message, the last one with why it ends."""
        ask = made.ask
        choice: dict[str, Any] = {
            "index": 0,
            "delta": delta,
            "logprobs": None if ask.logprobs is None else self.logprobs(made, start),
            "finish_reason": None,
        }
        if made.is_over and is_last:
            choice["finish_reason"] = _text(made.finish_reason)
            choice["stop_reason"] = orjson.loads(made.stop_reason)
        if ask.wants_ids:
            choice["token_ids"] = made.ids(start)
        return self.chunk(made, choice)

    def logprobs(self, made: Generation, start: int) -> dict[str, Any]:
        """Return a list of tokens, each with others beside it."""
        return {"content": chat_logprobs(made, start)}


class Text(OpenAI):
    """/v1/completions."""

    prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def read(self, request: dict[str, Any]) -> Ask:
        """Read a prompt."""
        return read_text(request)

    def content(self, made: Generation) -> dict[str, Any]:
        """Return the text, and the prompt's ids and logprobs, which are the choice's here."""
        ids: dict[str, Any] = (
            {"prompt_token_ids": made.ask.prompt_ids} if made.ask.wants_ids else {}
        )
        if made.ask.request.get("prompt_logprobs") is not None:
            ids["prompt_logprobs"] = prompt_logprobs(made)
        return {"text": made.text, **ids}

    def event(self, made: Generation, start: int) -> bytes:
        """Write a piece of the text, with the first one the prompt's ids."""
        ask = made.ask
        choice = {
            "index": 0,
            "text": "".join(made.pieces[start:]),
            "logprobs": None if ask.logprobs is None else self.logprobs(made, start),
            "finish_reason": _text(made.finish_reason),
            "stop_reason": orjson.loads(made.stop_reason),
        }
        if ask.wants_ids:
            choice["prompt_token_ids"] = None if start else ask.prompt_ids
            choice["token_ids"] = made.ids(start)
        return self.chunk(made, choice)

    def logprobs(self, made: Generation, start: int) -> dict[str, Any]:
        """Return columns: offsets, tokens, their logprobs and those of others."""
        offset = len("".join(made.pieces[:start]))
        offsets = []
        for piece in made.pieces[start:]:
            offsets.append(offset)
            offset += len(piece)
        others = made.ask.logprobs or 0
        return {
            "text_offset": offsets,
            "token_logprobs": made.logprobs[start:],
            "tokens": made.pieces[start:],
            "top_logprobs": [
                {piece: value} | {f" other{n}": value - n for n in range(1, others)}
                for piece, value in zip(made.pieces[start:], made.logprobs[start:], strict=True)
            ],
        }


def chat_logprobs(made: Generation, start: int) -> list[dict[str, Any]]:
    """Return the logprobs of the tokens from number `start` on, as chats have them."""
    others = made.ask.logprobs or 0
    by_id = bool(made.ask.request.get("return_tokens_as_token_ids"))
    content = []
    pieces, values = made.pieces[start:], made.logprobs[start:]
    for piece, token_id, value in zip(pieces, made.ids(start), values, strict=True):
        shown = f"token_id:{token_id}" if by_id else piece
        chosen = [_logprob(shown, piece, value)] if others else []
        rest = [_logprob(f" other{n}", f" other{n}", value - n) for n in range(1, others)]
        content.append(_logprob(shown, piece, value) | {"top_logprobs": chosen + rest})
    return content


def prompt_logprobs(made: Generation) -> list[dict[str, Any] | None]:
    """Return what the weights say to each token of the prompt, the first excepted; no others'."""
    ids = made.ask.prompt_ids
    known = zip(ids[1:], made.prompt_logprobs(), strict=True)
    return [
        None,
        *(
            {str(token_id): {"logprob": value, "rank": 1, "decoded_token": WORDS.word(token_id)}}
            for token_id, value in known
        ),
    ]


def usage(made: Generation, *, is_whole: bool = False) -> dict[str, Any]:
    """Return how many tokens there were, and how many of the prompt's were cached if it is known.

    vLLM leaves out of a stream what it does not know.
    """
    prompt, done = len(made.ask.prompt_ids), len(made.pieces)
    counted: dict[str, Any] = {
        "prompt_tokens": prompt,
        "total_tokens": prompt + done,
        "completion_tokens": done,
    }
    if made.cached_tokens is not None and (is_whole or made.is_over):
        counted["prompt_tokens_details"] = {"cached_tokens": made.cached_tokens}
    return counted


def sse(event: dict[str, Any]) -> bytes:
    """Return an event as the wire has it."""
    return b"data: %b\n\n" % orjson.dumps(event)


def _logprob(shown: str, piece: str, value: float) -> dict[str, Any]:
    return {"token": shown, "logprob": value, "bytes": list(piece.encode())}


def _text(reason: bytes | None) -> str | None:
    return reason.decode() if reason is not None else None


CHAT: Final = Chat()
TEXT: Final = Text()
