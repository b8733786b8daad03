"""The public URL of each server: a reverse proxy that routes, refuses and streams as documented.

Zero containers: 503 at once. Every container at `max_concurrency`: 429. `modal-flash-upstream:
HOST:PORT` pins a request to one container. An affinity header chooses by rendezvous hashing, any
other request the least busy. Without `unauthenticated=True`, 401 unless a proxy token comes along.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from tests.loopback_modal.plane import Container, Function
from tests.loopback_modal.servers import Server, Servers

PIN_HEADER = "modal-flash-upstream"
AFFINITY_HEADERS = ("Modal-Routing-Affinity-Key", "Modal-Session-ID")
_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
    *("trailer", "transfer-encoding", "upgrade"),
}
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


@dataclass(slots=True)
class Ingress:
    """One listening port per server, the same over redeployments."""

    servers: Servers
    proxy_tokens: Mapping[str, str]
    _runners: dict[str, web.AppRunner] = field(default_factory=dict)
    _urls: dict[tuple[str, str], str] = field(default_factory=dict)
    _sessions: list[aiohttp.ClientSession] = field(default_factory=list)
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    async def expose(self, function: Function) -> str:
        """Listen for the server; return its public URL."""
        server = self.servers.add(function)
        if function.id not in self._runners:
            application = web.Application()

            async def serve(request: web.Request) -> web.StreamResponse:
                return await self._serve(server, request)

            application.router.add_route("*", "/{path:.*}", serve)
            runner = web.AppRunner(
                application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
            )
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._runners[function.id] = runner
        host, port = self._runners[function.id].addresses[0][:2]
        return f"http://{host}:{port}"

    async def close(self) -> None:
        """Stop listening; cut what is under way."""
        for runner in self._runners.values():
            await runner.cleanup()
        for session in self._sessions:
            await session.close()

    async def _serve(self, server: Server, request: web.Request) -> web.StreamResponse:
        if not self._may_pass(server, request):
            return _refusal(server, 401, "modal-http: missing or unknown proxy token")
        self.servers.wake(server)
        container = self._choose(server, request)
        if container is None:
            return _refusal(server, 503, "modal-http: no container is ready")
        most = container.function.definition.max_concurrent_inputs
        if most and container.in_flight >= most:
            return _refusal(server, 429, "modal-http: every container is at max_concurrency")
        container.in_flight += 1
        try:
            return await self._forward(server, container, request)
        finally:
            container.in_flight -= 1
            container.idle_since = time.monotonic()

    def _may_pass(self, server: Server, request: web.Request) -> bool:
        if server.function.definition.http_config.unauthenticated:
            return True
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        key, _, secret = bearer.partition(".") if scheme.lower() == "bearer" else ("", "", "")
        key = request.headers.get("Modal-Key", key)
        secret = request.headers.get("Modal-Secret", secret)
        return bool(key) and self.proxy_tokens.get(key) == secret

    def _choose(self, server: Server, request: web.Request) -> Container | None:
        ready = self.servers.routable(server)
        pinned = request.headers.get(PIN_HEADER)
        if pinned is not None:
            every = self.servers.plane.live(server.function.id)
            return next((one for one in every if _address(one) == pinned and one in ready), None)
        if not ready:
            return None
        keys = [request.headers[name] for name in AFFINITY_HEADERS if name in request.headers]
        most = server.function.definition.max_concurrent_inputs
        free = [one for one in ready if not most or one.in_flight < most] or ready
        if keys:
            return max(free, key=lambda one: _weight(keys[0], one.id))
        start = next(self._turn) % len(free)
        return min([*free[start:], *free[:start]], key=lambda one: one.in_flight)

    async def _forward(
        self, server: Server, container: Container, request: web.Request
    ) -> web.StreamResponse:
        if not self._sessions:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._sessions.append(
                aiohttp.ClientSession(
                    connector=connector, auto_decompress=False, timeout=_NO_TIMEOUT
                )
            )
        url = f"http://127.0.0.1:{container.port}{request.raw_path}"
        headers = _end_to_end(request.headers)
        body = request.content if request.can_read_body else None
        response = web.StreamResponse()
        try:
            async with self._sessions[0].request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as upstream:
                server.statuses[upstream.status] += 1
                response.set_status(upstream.status, upstream.reason)
                for name, value in _end_to_end(upstream.headers):
                    response.headers.add(name, value)
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except aiohttp.ClientError:
            if response.prepared:
                assert request.transport is not None
                request.transport.abort()
                return response
            return _refusal(server, 503, "modal-http: the container did not answer")


def _refusal(server: Server, status: int, message: str) -> web.Response:
    server.statuses[status] += 1
    return web.Response(status=status, text=message)


def _address(container: Container) -> str:
    return f"127.0.0.1:{container.port}"


def _weight(key: str, container: str) -> bytes:
    return hashlib.sha256(f"{key}/{container}".encode()).digest()


def _end_to_end(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP]
