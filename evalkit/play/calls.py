"""One call to a server: the headers that name it, and what every way of not answering means."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import orjson

from evalkit.errors import CallFailed, ContextOverflow, Failure, Unauthorized, UnknownModel
from evalkit.play.policy import Ask
from evalkit.play.transport import (
    Body,
    ConnectFailed,
    ConnectionLost,
    ProtocolViolation,
    Response,
    ResponseTimeout,
    Transport,
)

OVERFLOW_MARKS = (
    "context length",
    "context_length_exceeded",
    "context window",
    "maximum model length",
    "max_model_len",
    "longer than the maximum",
)


async def post(
    transport: Transport,
    path: str,
    body: Body,
    ask: Ask,
    *,
    attempt: int,
    model: str,
    timeout_s: float,
) -> Response:
    """Carry one attempt of a call; return its answer, which has status 200.

    Raises:
        CallFailed: there is no such answer; `evalkit.play.limits` knows what may be tried again.
        Unauthorized: the key is not taken.
        UnknownModel: the server has no such model.

    """
    again = "" if attempt == 1 else f"-try{attempt}"
    ids = f"X-Session-ID: {ask.session_id}\r\nX-Request-ID: {ask.request_id}{again}\r\n"
    try:
        response = await transport.post(path, body, ids.encode(), timeout_s=timeout_s)
    except ConnectFailed as error:
        raise CallFailed(Failure.UNAVAILABLE, str(error)) from error
    except ConnectionLost as error:
        raise CallFailed(Failure.CONNECT, str(error)) from error
    except ResponseTimeout as error:
        raise CallFailed(Failure.TIMEOUT, str(error)) from error
    except ProtocolViolation as error:
        raise CallFailed(Failure.BAD_REPLY, str(error)) from error
    if response.status != 200:
        raise refusal(response, model)
    return response


def refusal(response: Response, model: str) -> CallFailed | Unauthorized | UnknownModel:
    """Turn a response other than 200 into what it means."""
    status, message = response.status, error_message(response.body)
    said = f"HTTP {status}: {message}"
    if status in {401, 403}:
        return Unauthorized(f"the server wants another API key ({said})")
    if status == 404:
        return UnknownModel(f"model {model!r}: {said}")
    if status == 400 and any(mark in message.lower() for mark in OVERFLOW_MARKS):
        return ContextOverflow(said)
    kind = _BY_STATUS.get(status, Failure.SERVER_ERROR if status >= 500 else Failure.REFUSED)
    retry_after_s = _seconds(response.headers.get("retry-after"))
    return CallFailed(kind, said, status=status, retry_after_s=retry_after_s)


_BY_STATUS = {
    408: Failure.TIMEOUT,
    409: Failure.CONFLICT,
    429: Failure.RATE_LIMITED,
    503: Failure.UNAVAILABLE,
}


def error_message(body: bytes) -> str:
    """Return the message of an OpenAI error object, or the beginning of whatever came instead."""
    try:
        raw = orjson.loads(body)
        error = raw.get("error", raw)
        message = error.get("message") if isinstance(error, dict) else error
        text = str(message or raw)
    except (ValueError, AttributeError):
        text = body.decode("utf-8", "replace")
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _seconds(value: str | None) -> float | None:
    """Read Retry-After: a number of seconds, or a date; None for anything else."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
