"""Stands in for models, servers and time, in tests of evalkit and of what is built on it.

Lives here: fakes of the ports `Policy` and `Transport`, a clock, and an OpenAI-compatible server on
the loopback interface. None of them sleeps or draws chance of its own. Must not know pytest.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import orjson

from evalkit.play.policy import Ask, Completion, Policy
from evalkit.play.transport import Body, ExtraHeaders, Response

Reply = str | Completion | Exception


class FakePolicy(Policy):
    """Answers every `Ask` by a function, and remembers what it was asked.

    `reply` returns a text, a `Completion`, or an exception to raise. With a `shuffle` seed answers
    come in another order than the questions, as they do from a server.
    """

    def __init__(self, reply: Callable[[Ask], Reply], *, shuffle: int | None = None) -> None:
        self._reply = reply
        self._rng = None if shuffle is None else random.Random(shuffle)
        self.asked: list[Ask] = []

    async def complete(self, ask: Ask) -> Completion:
        """Answer as `reply` says."""
        self.asked.append(ask)
        for _ in range(self._rng.randrange(8) if self._rng else 0):
            await asyncio.sleep(0)
        reply = self._reply(ask)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Completion) else Completion(text=reply)


def response(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None, elapsed_s: float = 0.0
) -> Response:
    """Return a `Response`; the names in `headers` are lower-case."""
    return Response(status=status, headers=headers or {}, body=body, elapsed_s=elapsed_s)


class FakeTransport:
    """A `Transport` that answers every body by a function, and remembers bodies and headers."""

    def __init__(self, answer: Callable[[bytes], Response | Exception]) -> None:
        self._answer = answer
        self.posted: list[tuple[bytes, ExtraHeaders]] = []
        self.closed = False

    async def post(
        self,
        path: str | bytes,  # noqa: ARG002 - the port's signature
        body: Body,
        headers: ExtraHeaders = b"",
        *,
        timeout_s: float,  # noqa: ARG002 - the port's signature
    ) -> Response:
        """Answer as the function says."""
        sent = body if isinstance(body, bytes) else body()
        self.posted.append((sent, headers))
        return self._said(sent)

    async def get(
        self,
        path: str | bytes,  # noqa: ARG002 - the port's signature
        headers: ExtraHeaders = b"",  # noqa: ARG002 - the port's signature
        *,
        timeout_s: float,  # noqa: ARG002 - the port's signature
    ) -> Response:
        """Answer as the function says to an empty body."""
        return self._said(b"")

    async def aclose(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _said(self, body: bytes) -> Response:
        said = self._answer(body)
        if isinstance(said, Exception):
            raise said
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as a `FakeServer` saw it; header names are lower-case."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


Said = tuple[int, object]
"""Status and JSON body of an answer; bytes are sent as they are."""


class FakeServer:
    """An OpenAI-compatible server on a port of the loopback interface, in a thread of its own.

    `chat` answers a chat request's body with a text, or with a status and a body. `models` is what
    GET /v1/models says, and may be set anew: the data of the list, or a status and a body.
    """

    def __init__(
        self,
        chat: Callable[[dict[str, Any]], str | Said],
        models: list[dict[str, Any]] | Said | None = None,
    ) -> None:
        self._chat = chat
        self.models = [{"id": "fake"}] if models is None else models
        self.received: list[Received] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._send(*server._listed(self.path))

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                self._send(*server._answered(self.path, dict(self.headers), body))

            def _send(self, status: int, said: object) -> None:
                body = said if isinstance(said, bytes) else orjson.dumps(said)
                with suppress(ConnectionError):  # the client has gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 1024  # many clients may connect at once

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing of clients that have gone; the rest as ever."""
                if not isinstance(sys.exception(), ConnectionError):
                    super().handle_error(request, client_address)  # type: ignore[arg-type]

        self._http = Server(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """The base URL, without a path."""
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The bodies of the chat requests so far."""
        return [request.body for request in self.received if request.body]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _listed(self, path: str) -> Said:
        if path != "/v1/models":
            return 404, {"error": {"message": f"no route {path}"}}
        return self.models if isinstance(self.models, tuple) else (200, {"data": self.models})

    def _answered(self, path: str, headers: Mapping[str, str], body: bytes) -> Said:
        lowered = {name.lower(): value for name, value in headers.items()}
        request = Received(path=path, headers=lowered, body=orjson.loads(body))
        self.received.append(request)
        said = self._chat(request.body)
        if not isinstance(said, str):
            return said
        choice = {"index": 0, "message": {"content": said}, "finish_reason": "stop"}
        return 200, {"model": request.body["model"], "choices": [choice]}


class FakeClock:
    """A clock that moves only when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Move the time on, and let others run."""
        self.slept_s.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)
