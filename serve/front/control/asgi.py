"""Calls the control plane's ASGI application for one request that has arrived in full."""

import asyncio
import logging
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from serve import wire
from serve.front.ports import Client, FrontDoor, Headers, Message
from serve.front.relay import heads

logger = logging.getLogger(__name__)


class Call:
    """One request for the control plane."""

    __slots__ = (
        "_chunked",
        "_client",
        "_done",
        "_gateway",
        "_gone",
        "_method",
        "_received",
        "_request",
        "_scope",
        "_started",
        "_task",
        "_writable",
    )

    def __init__(
        self,
        gateway: FrontDoor,
        client: Client,
        peer: str,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
    ) -> None:
        self._gateway = gateway
        self._client = client
        self._method = method
        self._gone = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._started = self._chunked = self._received = self._done = False
        self._task: asyncio.Task[None] | None = None
        self._request = body
        path, _, query = target.partition(b"?")
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method.decode("latin-1"),
            "scheme": gateway.scheme(peer, headers),
            "path": unquote_to_bytes(path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": (client.source, 0),
            "palaestra.peer": peer,
            "server": gateway.address,
            "state": {},
        }

    def start(self) -> None:
        """Run the application."""
        self._task = self._gateway.loop.create_task(self._run())

    def client_gone(self) -> None:
        """Stop: nobody waits for the answer."""
        self._gone.set()
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause(self) -> None:
        """Write no more: the client does not read."""
        self._writable.clear()

    def resume(self) -> None:
        """Write on."""
        self._writable.set()

    async def _run(self) -> None:
        try:
            await self._gateway.app(self._scope, self._receive, self._send)
        except Exception:  # the boundary of the application: its failure must not end the server
            logger.exception("%s %s failed", self._scope["method"], self._scope["path"])
            if not self._started:
                self._fail()
            elif not self._done:
                self._client.cut()

    def _fail(self) -> None:
        body = wire.error_body("internal error", status=500, kind="api_error")
        self._client.write(heads.answer(500, body, keep_alive=self._client.keep_alive))
        self._client.exchange_done()

    async def _receive(self) -> Message:
        if not self._received:
            self._received = True
            return {"type": "http.request", "body": self._request, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
            return
        body = message.get("body", b"")
        if self._method == b"HEAD":
            body = b""
        more = message.get("more_body", False)
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._client.write(chunk if more else chunk + b"0\r\n\r\n")
        elif body:
            self._client.write(body)
        if more:
            await self._writable.wait()
        else:
            self._done = True
            self._client.exchange_done()

    def _begin(self, message: Message) -> None:
        self._started = True
        status = message["status"]
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        names = set()
        for name, value in message.get("headers", ()):
            names.add(name.lower())
            lines.append(b"%b: %b" % (name, value))
        has_body = self._method != b"HEAD" and status not in (204, 304)
        self._chunked = has_body and b"content-length" not in names
        if self._chunked:
            lines.append(b"transfer-encoding: chunked")
        if not self._client.keep_alive:
            lines.append(b"connection: close")
        self._client.write(b"\r\n".join((*lines, b"", b"")))
