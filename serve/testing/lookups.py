"""Answers that nobody has to wait for: tokens of texts, texts of tokens, embeddings. Pure."""

import base64
import math
import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

import orjson

from serve.testing.asks import is_token_list
from serve.testing.plain import CREATED
from serve.testing.refusals import invalid, missing
from serve.testing.tokens import WORDS, decode, encode, encode_chat

_DIMENSIONS = 16
_MOST_DIMENSIONS = 4096

Lookup = Callable[[dict[str, Any]], dict[str, Any]]
"""From a request to an answer, without what depends on the engine."""


def tokenize(request: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of a prompt or of a conversation."""
    if "messages" in request:
        answer = bool(request.get("add_generation_prompt", True))
        ids = encode_chat(request["messages"], answer=answer)
    elif isinstance(request.get("prompt"), str):
        ids = encode(request["prompt"])
    else:
        raise missing("prompt")
    words = [WORDS.word(token_id) for token_id in ids] if request.get("return_token_strs") else None
    return {"count": len(ids), "max_model_len": None, "tokens": ids, "token_strs": words}


def detokenize(request: dict[str, Any]) -> dict[str, Any]:
    """Return the text of ids."""
    ids = request.get("tokens")
    if ids is None:
        raise missing("tokens")
    if not is_token_list(ids):
        raise invalid("int_parsing", "body.tokens.0", "Input should be a valid integer")
    if any(token_id < 0 for token_id in ids):
        message = "Input should be greater than or equal to 0"
        raise invalid("greater_than_equal", "body.tokens.0", message)
    return {"prompt": decode(ids)}


def embeddings(request: dict[str, Any]) -> dict[str, Any]:
    """Return a vector of length 1 for each text or list of ids, the same for the same text."""
    given = request.get("input")
    if not given:
        raise missing("input")
    inputs = [given] if isinstance(given, str) or is_token_list(given) else given
    size = request.get("dimensions") or _DIMENSIONS
    if not isinstance(size, int) or not 0 < size <= _MOST_DIMENSIONS:
        raise invalid("int_parsing", "body.dimensions", "Input should be a valid integer")
    texts = [each if isinstance(each, str) else decode(each) for each in inputs]
    vectors = [_vector(text, size) for text in texts]
    is_base64 = request.get("encoding_format") == "base64"
    tokens = sum(len(encode(text)) for text in texts)
    return {
        "id": f"embd-{blake2b(orjson.dumps(texts), digest_size=8).hexdigest()}",
        "object": "list",
        "created": CREATED,
        "model": None,
        "data": [
            {
                "index": index,
                "object": "embedding",
                "embedding": _packed(vector) if is_base64 else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


def _vector(text: str, size: int) -> list[float]:
    drawn = [
        int.from_bytes(blake2b(text.encode(), digest_size=4, salt=b"%d" % n).digest()) / 2**31 - 1
        for n in range(size)
    ]
    length = math.hypot(*drawn)
    return [number / length for number in drawn]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


LOOKUPS: Final[dict[bytes, Lookup]] = {
    b"/tokenize": tokenize,
    b"/detokenize": detokenize,
    b"/v1/embeddings": embeddings,
}
