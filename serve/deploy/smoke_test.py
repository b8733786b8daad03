"""Whether a served policy answers: one chat and one stream, as any client would ask for them.

A server on Modal that has no container answers 503 at once; that is waited out.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from serve.deploy.arguments import KEY_VARIABLE
from serve.errors import DeployError

_WORTH_A_RETRY = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
_TRY_S = 300.0
_PAUSE_S = 1.0
_PROMPT = "Say hello in one word."


def check(
    url: str,
    key: str,
    model: str,
    *,
    within_s: float,
    transport: httpx.BaseTransport | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yield what was found, line by line; raise DeployError with what was not."""
    deadline_s = time.monotonic() + within_s
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=httpx.Timeout(_TRY_S, connect=10.0),
        transport=transport,
    ) as client:
        waited = _Waiting(client, deadline_s, sleep)
        health = waited.ask("GET", "/health")
        yield f"gateway  {url} answers, version {health.json().get('version', '?')}"
        body = {
            "model": model,
            "messages": [{"role": "user", "content": _PROMPT}],
            "max_tokens": 16,
        }
        started_s = time.monotonic()
        chat = waited.ask("POST", "/v1/chat/completions", body)
        yield (
            f"chat     {model}@{_version(chat)} said {_content(chat)!r} "
            f"after {time.monotonic() - started_s:.1f} s"
        )
        pieces = waited.stream("/v1/chat/completions", {**body, "stream": True})
        yield f"stream   {pieces} pieces"


class _Waiting:
    """Asks until there is a good answer, a refusal, or no time left."""

    def __init__(
        self, client: httpx.Client, deadline_s: float, sleep: Callable[[float], None]
    ) -> None:
        self._client = client
        self._deadline_s = deadline_s
        self._sleep = sleep

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Return a good answer; raise DeployError."""
        while True:
            said = ""
            try:
                answer = self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                said = f"no answer ({type(error).__name__}: {error})"
                retry_s = _PAUSE_S
            else:
                if answer.is_success:
                    return answer
                said = f"{answer.status_code}: {_reason(answer)}"
                if answer.status_code not in _WORTH_A_RETRY:
                    raise DeployError(f"{method} {path} was refused with {said}{_hint(answer)}")
                retry_s = _retry_after_s(answer)
            if time.monotonic() + retry_s > self._deadline_s:
                raise DeployError(f"{method} {path} got no good answer in time; the last: {said}")
            self._sleep(retry_s)

    def stream(self, path: str, body: dict[str, Any]) -> int:
        """Return how many pieces with text a whole stream had; raise DeployError."""
        try:
            with self._client.stream("POST", path, json=body) as answer:
                if not answer.is_success:
                    answer.read()
                    raise DeployError(
                        f"the stream was refused with {answer.status_code}: {_reason(answer)}"
                    )
                lines = list(answer.iter_lines())
        except httpx.HTTPError as error:
            raise DeployError(f"the stream broke ({type(error).__name__}: {error})") from None
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            raise DeployError(f"the stream ended without [DONE]: {(events or lines)[-1:]}")
        pieces = [json.loads(event) for event in events[:-1]]
        count = sum(
            bool(choice.get("delta", {}).get("content"))
            for piece in pieces
            for choice in piece.get("choices", ())
        )
        if not count:
            raise DeployError(f"the stream had no text in {len(pieces)} events")
        return count


def _version(answer: httpx.Response) -> str:
    return str(answer.headers.get("x-policy-version", "?"))


def _content(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError) as error:
        raise DeployError(f"the chat's answer is no completion: {answer.text[:200]}") from error


def _reason(answer: httpx.Response) -> str:
    try:
        said = answer.json()
        error = said.get("error", said)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return " ".join(answer.text.split())[:200] or answer.reason_phrase


def _hint(answer: httpx.Response) -> str:
    if answer.status_code != 401:
        return ""
    return f"; expected a key of the gateway, or Modal's proxy token, in ${KEY_VARIABLE}"


def _retry_after_s(answer: httpx.Response) -> float:
    try:
        return min(max(float(answer.headers.get("retry-after", "")), _PAUSE_S), 30.0)
    except ValueError:
        return _PAUSE_S
