"""The OpenAPI document: what FastAPI knows, and the data plane, which it never sees. Pure."""

from collections.abc import Mapping
from typing import Any

from serve import wire

_ERROR = {"$ref": "#/components/schemas/ErrorAnswer"}
_PATHS = {
    "/v1/chat/completions": ("Chat completions, streamed or not", "infer"),
    "/v1/completions": ("Completions, streamed or not", "infer"),
    "/v1/responses": ("OpenAI's Responses API", "infer"),
    "/v1/embeddings": ("Embeddings", "infer"),
    "/tokenize": ("Text or messages to token ids", "infer"),
    "/detokenize": ("Token ids to text", "infer"),
    "/inference/v1/generate": ("Token ids in, token ids out; scope train", "train"),
}
_ERRORS = {
    "400": "The request cannot be read.",
    "401": "No key, or a wrong one.",
    "403": "The key's scopes do not cover this path.",
    "404": "There is no such model.",
    "409": "No replica serves that version now; try again.",
    "413": "The body is too long.",
    "429": "A limit of the key, or too many failures from this address; see Retry-After.",
    "502": "The replica was lost before it answered, and so was the next one.",
    "503": "No replica is ready; see Retry-After.",
}
_HEADERS = (
    (wire.SESSION_HEADER, "One per episode: its requests go to the replica that has its prefix."),
    (wire.REQUEST_ID_HEADER, "Comes back in the answer, and is in the access log."),
    (wire.POLICY_CONSTRAINT_HEADER, "`>=7` or `==7`: the versions that may answer."),
)
_REQUEST = {
    "type": "object",
    "required": ["model"],
    "properties": {
        "model": {
            "type": "string",
            "description": "NAME is the newest version, NAME@7 exactly version 7.",
        }
    },
    "additionalProperties": True,
}
_JSON = {"application/json": {"schema": {"type": "object"}}}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}

DATA_PLANE_PATHS = frozenset(_PATHS)


def with_data_plane(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the data plane's paths in it."""
    paths = {path: {"post": _operation(path, *words)} for path, words in _PATHS.items()}
    return {**document, "paths": {**paths, **document["paths"]}}


def _operation(path: str, summary: str, scope: str) -> Mapping[str, Any]:
    streams = path.startswith("/v1/")
    return {
        "tags": ["data plane"],
        "summary": summary,
        "description": "Passed through to the engine byte for byte: see vLLM for all its fields.",
        "operationId": path.strip("/").replace("/", "_"),
        "security": [{"key": []}],
        "x-scope": scope,
        "parameters": [_parameter(name, words) for name, words in _HEADERS],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}},
        "responses": {
            "200": {
                "description": "The engine's answer.",
                "headers": {
                    wire.POLICY_VERSION_HEADER: {"schema": {"type": "integer"}},
                    wire.REPLICA_HEADER: {"schema": {"type": "string"}},
                },
                "content": {**_JSON, **(_EVENTS if streams else {})},
            },
            **{
                status: {
                    "description": words,
                    "content": {"application/json": {"schema": _ERROR}},
                }
                for status, words in _ERRORS.items()
            },
        },
    }


def _parameter(name: str, words: str) -> Mapping[str, Any]:
    return {
        "in": "header",
        "name": name,
        "description": words,
        "required": False,
        "schema": {"type": "string"},
    }
