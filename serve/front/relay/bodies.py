"""What a gateway reads from bodies that it passes through: a few fields in, the usage out. Pure.

Nothing here re-encodes a body. Where the engine knows the policy under another name than the
client's, the model's name is cut out and the other one put in; every other byte stays.
"""

import re
from typing import Any

import msgspec


class BadBody(ValueError):
    """A body that no engine could read; says why."""


class Asked(msgspec.Struct):
    """The fields that routing needs; all others are skipped, not read."""

    model: str | None = None
    stream: Any = None


_decode = msgspec.json.Decoder(Asked).decode
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]')
_VALUE = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*"|null)')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d+)\s*[,}]')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens":\s*(\d+)\s*[,}]')
_USAGE_BYTES = 600
_MODEL = b'"model"'
_ESCAPED = b"\\u006"
"""How every escape of a letter of `model` begins: a key may be spelt so."""


def read(body: bytes) -> Asked:
    """Return what a request asks for; raise BadBody."""
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise BadBody(f"the body is not a request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBody(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise BadBody("the body is nested too deeply") from None


def with_model(body: bytes, engine_name: bytes, *, is_named: bool) -> bytes:
    """Return the body with `engine_name`, a JSON string, as its top-level `model`.

    `is_named` says whether the body has one now that is not null.
    """
    only_one = is_named and body.count(_MODEL) == 1 and _ESCAPED not in body
    spans = [_value_after(body, body.index(_MODEL) + len(_MODEL))] if only_one else []
    if not spans or spans == [(0, 0)]:
        spans = _model_spans(body)
    if not spans:
        start = body.index(b"{") + 1
        comma = b"" if body[start:].lstrip().startswith(b"}") else b","
        return b"".join((body[:start], _MODEL, b":", engine_name, comma, body[start:]))
    parts: list[bytes] = []
    end = 0
    for start, stop in spans:
        parts += (body[end:start], engine_name)
        end = stop
    return b"".join((*parts, body[end:]))


def _model_spans(body: bytes) -> list[tuple[int, int]]:
    """Return where the values of the top-level `model` keys are; JSON allows a key twice."""
    spans = []
    depth = 0
    for token in _TOKEN.finditer(body):
        text = token.group()
        if text in (b"{", b"["):
            depth += 1
        elif text in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and _is_model(text):
            span = _value_after(body, token.end())
            if span != (0, 0):
                spans.append(span)
    return spans


def _is_model(text: bytes) -> bool:
    return text == _MODEL or (_ESCAPED in text and msgspec.json.decode(text) == "model")


def _value_after(body: bytes, end: int) -> tuple[int, int]:
    """Return where the value of the key that ends at `end` is; (0, 0) if that is no key."""
    found = _VALUE.match(body, end)
    return (0, 0) if found is None else found.span(1)


def usage(tail: bytes) -> tuple[int, int] | None:
    """Return (prompt, completion) tokens from the last usage object in these bytes, or None."""
    start = tail.rfind(b'"usage":')
    if start < 0:
        return None
    part = tail[start : start + _USAGE_BYTES]
    prompt = _PROMPT.search(part)
    if prompt is None:
        return None
    completion = _COMPLETION.search(part)
    return int(prompt[1]), int(completion[1]) if completion else 0
