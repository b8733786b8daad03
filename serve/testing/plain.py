"""Answers to requests for nothing special, at the least cost. Pure.

They are byte for byte what `forms` would write.
"""

from typing import Final

import orjson

from serve.testing.generation import Finished

CREATED: Final = 1_767_225_600
FINGERPRINT: Final = "fake-engine"
DONE: Final = b"data: [DONE]\n\n"

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
_CHAT_HEAD = (
    b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":%d,"model":%b,'
    b'"choices":['
)
_TEXT_HEAD = b'data: {"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b,"choices":['
_CHAT_OPENING = (
    b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
)
_CHAT_EVENT = b'{"index":0,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]}\n\n'
_CHAT_LAST = (
    b'{"index":0,"delta":{"content":%b},"logprobs":null,'
    b'"finish_reason":"%b","stop_reason":%b}]}\n\n'
)
_TEXT_EVENT = b'{"index":0,"text":%b,"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
_TEXT_LAST = b'{"index":0,"text":%b,"logprobs":null,"finish_reason":"%b","stop_reason":%b}]}\n\n'
_USAGE = (
    b'],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d},'
    b'"system_fingerprint":"%b"}\n\n'
)


def whole(done: Finished, digest: bytes, model: bytes, prompt_tokens: int, *, chat: bool) -> bytes:
    """Return a whole answer; `model` is JSON."""
    made = len(done.pieces)
    return (_CHAT if chat else _TEXT) % (
        digest,
        CREATED,
        model,
        done.encoded,
        done.finish_reason,
        done.stop_reason,
        FINGERPRINT.encode(),
        prompt_tokens,
        prompt_tokens + made,
        made,
    )


def events(
    done: Finished,
    digest: bytes,
    model: bytes,
    prompt_tokens: int | None,
    *,
    chat: bool,
) -> bytes:
    """Return a whole stream: a token an event, then usage unless `prompt_tokens` is None."""
    head = (_CHAT_HEAD if chat else _TEXT_HEAD) % (digest, CREATED, model)
    event, last = (_CHAT_EVENT, _CHAT_LAST) if chat else (_TEXT_EVENT, _TEXT_LAST)
    *pieces, end = done.pieces or ("",)
    parts = [head + event % orjson.dumps(piece) for piece in pieces]
    parts.append(head + last % (orjson.dumps(end), done.finish_reason, done.stop_reason))
    if prompt_tokens is not None:
        made = len(done.pieces)
        counts = (prompt_tokens, prompt_tokens + made, made)
        parts.append(head + _USAGE % (*counts, FINGERPRINT.encode()))
    return b"".join((head + _CHAT_OPENING if chat else b"", *parts, DONE))
