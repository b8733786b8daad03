"""From the bytes of a request to the bytes of its answer. Pure, and lean: benchmarks lean on it.

The shapes and the wording are vLLM 0.32's. A word is a token; a prompt also pays one for each
message. Ids and replies come from a digest of messages and seed: equal requests get equal bytes.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from serve.testing.structured import NotUnderstood, matching

Reply = str | Sequence[str] | Callable[[dict[str, Any]], str]
"""What to reply: always this, one of these by digest, or what the function makes of the request."""

_CREATED = 1_767_225_600
_FINGERPRINT = b"fake-engine"
_WORD = re.compile(r"\s*\S+")

_CHAT = (
    b'{"id":"chatcmpl-%b","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,'
    b'"message":{"role":"assistant","content":%b,"refusal":null,"reasoning":null},"logprobs":null,'
    b'"finish_reason":"%b","stop_reason":%b}],"system_fingerprint":"%b",'
    b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}}'
)
_TEXT = (
    b'{"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b,"choices":[{"index":0,'
    b'"text":%b,"logprobs":null,"finish_reason":"%b","stop_reason":%b}],"system_fingerprint":"%b",'
    b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}}'
)


class Refusal(Exception):
    """A request that gets an OpenAI error object instead of a completion."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "BadRequestError",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """Return the error object as vLLM writes it."""
        return orjson.dumps(
            {
                "error": {
                    "message": str(self),
                    "type": self.kind,
                    "param": self.param,
                    "code": self.status,
                }
            }
        )


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


class Answerer:
    """Answers the completion requests of one model."""

    def __init__(self, reply: Reply, *, model: str, max_model_len: int) -> None:
        self.model = model
        self.max_model_len = max_model_len
        self._encoded_model = orjson.dumps(model)
        self._choices = (reply,) if isinstance(reply, str) else reply
        if not callable(self._choices) and not self._choices:
            raise ValueError("FakeEngine needs at least one reply")

    def answer(self, body: bytes, *, chat: bool) -> tuple[bytes, bool]:
        """Return the answer's body and whether it is a stream of events; raise Refusal."""
        request = _decode(body)
        subject = _subject(request, chat=chat)
        self._check(request)
        prompt_tokens = subject.count(b" ") + subject.count(b"\\n") + 1
        if chat:
            prompt_tokens += len(request["messages"])
        room = self.max_model_len - prompt_tokens
        if room <= 0:
            raise Refusal(
                f"This model's maximum context length is {self.max_model_len} tokens. However, "
                f"your prompt contains at least {self.max_model_len + 1} input tokens, which "
                "exceeds this limit even without any output tokens. Please reduce the length of "
                f"the input prompt. (parameter=input_tokens, value={self.max_model_len + 1})",
                param="input_tokens",
            )
        seed = request.get("seed")
        digest = hashlib.blake2b(subject + b"%d" % (seed or 0), digest_size=8).hexdigest()
        text = self._reply(request, int(digest, 16))
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or room
        done = _finish(text, min(limit, room), _stops(request), _keeps_stop(request))
        if request.get("stream"):
            return self._events(request, done, digest, prompt_tokens, chat=chat), True
        return self._body(done, digest, prompt_tokens, chat=chat), False

    def _check(self, request: dict[str, Any]) -> None:
        for name in ("max_tokens", "max_completion_tokens", "seed", "n"):
            if not isinstance(request.get(name), int | None):
                raise _invalid("int_parsing", f"body.{name}", "Input should be a valid integer")
        model = request.get("model", self.model)
        if model != self.model:
            raise Refusal(
                f"The model `{model}` does not exist. Valid aliases: {self.model}.",
                status=404,
                kind="NotFoundError",
                param="model",
            )
        limit = request.get("max_tokens")
        if limit is not None and limit < 1:
            raise _out_of_range("max_tokens", "at least 1", limit)
        if limit is not None and limit > self.max_model_len:
            raise Refusal(
                f"max_tokens={limit} cannot be greater than max_model_len={self.max_model_len}. "
                f"Please request fewer output tokens. (parameter=max_tokens, value={limit})",
                param="max_tokens",
            )
        temperature = request.get("temperature") or 0.0
        if not isinstance(temperature, int | float):
            raise _invalid("float_parsing", "body.temperature", "Input should be a valid number")
        if temperature < 0:
            raise _out_of_range("temperature", "non-negative", float(temperature))
        if request.get("n") not in (None, 1):
            raise Refusal("FakeEngine makes one choice a request (n=1).", param="n")

    def _reply(self, request: dict[str, Any], pick: int) -> str:
        choices = self._choices
        text = choices(request) if callable(choices) else choices[pick % len(choices)]
        wanted = request.get("structured_outputs")
        if wanted is None:
            return text
        try:
            return _structured(wanted, text, pick)
        except NotUnderstood as error:
            raise Refusal(f"Grammar error: {error}") from None

    def _body(self, done: Finished, digest: str, prompt_tokens: int, *, chat: bool) -> bytes:
        made = len(done.pieces)
        return (_CHAT if chat else _TEXT) % (
            digest.encode(),
            _CREATED,
            self._encoded_model,
            done.encoded,
            done.finish_reason,
            done.stop_reason,
            _FINGERPRINT,
            prompt_tokens,
            prompt_tokens + made,
            made,
        )

    def _events(
        self,
        request: dict[str, Any],
        done: Finished,
        digest: str,
        prompt_tokens: int,
        *,
        chat: bool,
    ) -> bytes:
        """Write the whole stream: a token an event, then usage if it was asked for."""
        chunk: dict[str, Any] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{digest}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": _CREATED,
            "model": self.model,
        }
        choices = [_delta(piece, chat=chat) for piece in done.pieces or ("",)]
        choices[-1] |= {
            "finish_reason": done.finish_reason.decode(),
            "stop_reason": orjson.loads(done.stop_reason),
        }
        if chat:
            choices.insert(0, _delta("", chat=True))
            choices[0]["delta"]["role"] = "assistant"
        events = [chunk | {"choices": [choice]} for choice in choices]
        if (request.get("stream_options") or {}).get("include_usage"):
            made = len(done.pieces)
            usage = {
                "prompt_tokens": prompt_tokens,
                "total_tokens": prompt_tokens + made,
                "completion_tokens": made,
            }
            events.append(chunk | {"choices": [], "usage": usage})
        return b"".join(b"data: %b\n\n" % orjson.dumps(e) for e in events) + b"data: [DONE]\n\n"


def _decode(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _invalid("json_invalid", f"body.{error.pos}", f"JSON decode error: {error}") from None
    if not isinstance(request, dict):
        raise _invalid("model_attributes_type", "body", "Input should be a valid dictionary")
    return request


def _subject(request: dict[str, Any], *, chat: bool) -> bytes:
    """Return what the reply is a function of, apart from the seed: messages or prompt as JSON."""
    name = "messages" if chat else "prompt"
    subject = request.get(name)
    if chat and subject is None:
        raise _invalid("missing", "body.messages", "Field required")
    if chat and not isinstance(subject, list):
        raise _invalid("list_type", "body.messages", "Input should be a valid list")
    if chat and not subject:
        raise Refusal(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    if not subject:
        raise Refusal(
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)",
            param="prompt",
        )
    return orjson.dumps(subject)


def _structured(wanted: dict[str, Any], text: str, pick: int) -> str:
    """Return the reply if it already has the wanted form, else something that has."""
    if choice := wanted.get("choice"):
        return text if text in choice else str(choice[pick % len(choice)])
    regex = wanted.get("regex")
    if regex is None:
        raise NotUnderstood(f"FakeEngine knows regex and choice, got {sorted(wanted)}")
    made = matching(regex, pick)
    return text if re.fullmatch(regex, text) else made


def _stops(request: dict[str, Any]) -> tuple[str, ...]:
    stop = request.get("stop") or ()
    return (stop,) if isinstance(stop, str) else tuple(map(str, stop))


def _keeps_stop(request: dict[str, Any]) -> bool:
    return bool(request.get("include_stop_str_in_output"))


@lru_cache(maxsize=4096)
def _finish(text: str, limit: int, stops: tuple[str, ...], keep_stop: bool) -> Finished:
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


def _delta(piece: str, *, chat: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"delta": {"content": piece}} if chat else {"text": piece}
    return {"index": 0, **content, "logprobs": None, "finish_reason": None}


def _invalid(kind: str, place: str, message: str) -> Refusal:
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{message}'}}"
    return Refusal(text, kind="Bad Request", param=place)


def _out_of_range(name: str, wanted: str, found: float) -> Refusal:
    message = f"{name} must be {wanted}, got {found}. (parameter={name}, value={found})"
    return Refusal(message, param=name)
