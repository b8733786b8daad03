"""The gateway: holds what every connection shares, and requests until a replica is ready.

Knows the ports of pool and accounts, and no process, database or web framework: `serve.up` puts
the real ones together.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from serve.config import is_loopback
from serve.front.plane.exchange import Exchange
from serve.front.plane.lane import DATA_PLANE, Lane
from serve.front.plane.request import clock
from serve.front.plane.shadow import Nobody
from serve.front.ports import App, Auth, Headers, Ledger, Tracer
from serve.front.relay import bodies
from serve.front.relay.naming import Resolver
from serve.front.sight.access_log import AccessLog
from serve.front.sight.meters import Meters
from serve.pool.base import Demand, Pool
from serve.pool.replicas import Replica
from serve.pool.routing import Router, Wanted
from serve.settings import FrontConfig

logger = logging.getLogger(__name__)

_SWEEP_S = 0.5
_IDLE_UPSTREAM_S = 60.0
_BYTES_A_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a gateway is put together from."""

    pool: Pool
    router: Router
    resolver: Resolver
    auth: Auth
    ledger: Ledger
    meters: Meters
    limits: FrontConfig
    swaps: Callable[[], int] = int
    """How often weights were changed on an engine."""
    access_log: AccessLog | None = None
    tracer: Tracer | None = None
    edge_tls: bool = False
    """Whether everybody comes through somebody who speaks HTTPS with them."""
    trusts_edge: bool = False
    """Whether that one also proves who they are."""


class Gateway:
    """One front door. `app` is the control plane's ASGI application, set before `start`."""

    app: App

    def __init__(self, parts: Parts, *, host: str, port: int) -> None:
        self.pool = parts.pool
        self.router = parts.router
        self.resolver = parts.resolver
        self.auth = parts.auth
        self.meters = parts.meters
        self.limits = parts.limits
        self.address = (host, port)
        self.stopping = False
        self._ledger = parts.ledger
        self._swaps = parts.swaps
        self._access_log = parts.access_log
        self._tracer = parts.tracer
        self._trusted = frozenset(parts.limits.trusted_proxies)
        self._is_tls, self._edge_tls = False, parts.edge_tls
        self.trusts_edge = parts.trusts_edge
        self.expects_https = False
        self._lanes: set[Lane] = set()
        self._held: dict[Exchange, None] = {}
        self._ended: list[Exchange] = []
        self._last_busy = clock()
        self._drained = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    # Its life.

    async def start(self, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen. With port 0, `address` says where."""
        self.loop = asyncio.get_running_loop()
        self.pool.listeners.append(self._replica_changed)
        self.pool.demand = self.demand
        host, port = self.address
        self._is_tls = tls is not None
        self.expects_https = not (self._edge_tls or tls is not None or is_loopback(host))
        self._server = await self.loop.create_server(
            lambda: Lane(self), host, port, ssl=tls, backlog=4096
        )
        self.address = (host, self._server.sockets[0].getsockname()[1])
        for listening in self._server.sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sweeper = self.loop.create_task(self._sweep())

    async def stop(self, grace_s: float = 30.0) -> None:
        """Accept nothing more, let requests in flight finish for `grace_s`, then drop them."""
        if self._server is None:
            return
        self.stopping = True
        self._server.close()
        for exchange in list(self._held):
            exchange.refuse(503, "the gateway stops", kind="service_unavailable_error")
        if not self._lanes:
            self._drained.set()
        for lane in list(self._lanes):
            lane.close_if_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._drained.wait()
        for lane in list(self._lanes):
            lane.transport.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for replica in self.pool.replicas:
            for upstream in list(replica.idle):
                upstream.abort()
        await self._server.wait_closed()
        self._server = None
        self._settle_all()

    # Connections.

    def connected(self, lane: Lane) -> bool:
        """Count a connection in; False if there are too many."""
        self._lanes.add(lane)
        return len(self._lanes) <= self.limits.max_connections

    def disconnected(self, lane: Lane) -> None:
        """Count a connection out."""
        self._lanes.discard(lane)
        if self.stopping and not self._lanes:
            self._drained.set()

    @property
    def connections(self) -> int:
        """Open client connections."""
        return len(self._lanes)

    def is_secure(self, source: str, headers: Headers) -> bool:
        """Whether nobody on the way could read the request: HTTPS, or this machine alone."""
        return (
            not self.expects_https
            or self.scheme(source, headers) == "https"
            or (is_loopback(source) and not any(name == b"x-forwarded-for" for name, _ in headers))
        )

    def scheme(self, source: str, headers: Headers) -> str:
        """Return what the client spoke: ours, or what a trusted proxy says."""
        if self._is_tls:
            return "https"
        if source in self._trusted:
            for name, value in headers:
                if name == b"x-forwarded-proto":
                    return "https" if value.strip().lower() == b"https" else "http"
        return "http"

    def client_of(self, peer: str, headers: Headers) -> str:
        """Return who asks: behind trusted proxies, the last address that is none of them."""
        if peer not in self._trusted:
            return peer
        forwarded = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        for hop in reversed(forwarded.decode("latin-1").split(",")):
            if (address := hop.strip()) and address not in self._trusted:
                return address
        return peer

    # Requests.

    def unserved(self, exchange: Exchange) -> None:
        """Hold, or refuse, a request that no ready replica can serve now."""
        wanted = exchange.wanted
        assert wanted is not None
        ready = [replica for replica in self.pool.replicas if replica.is_ready]
        if ready and any(wanted.name in replica.served for replica in ready):
            exchange.refuse(
                409,
                f"no replica serves {_described(wanted)} now; there is "
                + ", ".join(sorted({str(r.current.get(wanted.name)) for r in ready})),
                kind="conflict_error",
                code="policy_version_not_ready",
                retry_after_s=1,
            )
        elif ready and self.pool.knows_all:
            message = f"the model {wanted.name!r} does not exist"
            exchange.refuse(404, message, code="model_not_found")
        elif not self.pool.can_wake or len(self._held) >= self.limits.max_held:
            self.meters.refused("held_full")
            exchange.refuse(
                503,
                "no replica is ready, and too many requests wait for one",
                kind="service_unavailable_error",
                code="no_replica_ready",
                retry_after_s=5,
            )
        else:
            exchange.held_at = exchange.held_at or clock()
            self._held[exchange] = None
            self.meters.held = len(self._held)
            self.meters.held_max = max(self.meters.held_max, self.meters.held)
            self.pool.wake()

    def finished(self, exchange: Exchange) -> None:
        """Settle what it cost, exactly once, when its answer is on its way, before more is read."""
        exchange.ended_at = self._last_busy = clock()
        if exchange.held_at and self._held.pop(exchange, exchange) is None:
            self.meters.held = len(self._held)
        self._ended.append(exchange)
        if len(self._ended) == 1:
            self.loop.call_soon(self._settle_all)

    def shadow(self, exchange: Exchange) -> None:
        """Send a copy to the version that a shadow rule names; its answer goes nowhere."""
        wanted = exchange.wanted
        assert wanted is not None
        if not self.resolver.rules.shadow:
            return
        version = self.resolver.shadow_version(wanted.name, exchange.session)
        if version is None or version == wanted.exact:
            return
        copy = Exchange(self, Nobody(), exchange.path, [], exchange.body)
        copy.forwarded = exchange.forwarded
        copy.model = "shadow"
        copy.engine_name = exchange.engine_name
        copy.session = exchange.session
        copy.wanted = Wanted(wanted.name, exact=version)
        copy.dispatch()

    def demand(self) -> Demand:
        """Return the autoscaling signal."""
        now = clock()
        in_flight = sum(replica.in_flight for replica in self.pool.replicas)
        oldest = min((exchange.held_at for exchange in self._held), default=now)
        busy = in_flight or self._held
        return Demand(
            in_flight=in_flight,
            held=len(self._held),
            oldest_held_s=now - oldest,
            idle_s=0.0 if busy else now - self._last_busy,
        )

    # Below.

    def _settle_all(self) -> None:
        ended, self._ended = self._ended, []
        for exchange in ended:
            self._settle(exchange)

    def _settle(self, exchange: Exchange) -> None:
        usage = bodies.usage(exchange.whole) if exchange.whole else exchange.usage
        estimated = usage is None and exchange.streamed
        if estimated:
            usage = (len(exchange.body) // _BYTES_A_TOKEN, exchange.events)
        prompt, completion = usage or (0, 0)
        account = exchange.account
        key_id = ""
        if account is not None:
            key_id = account.id
            account.release(exchange.ended_at, prompt + completion)
            if usage is not None:
                self._ledger.add(key_id, exchange.model, prompt, completion, estimated)
        replica = exchange.replica
        first_byte_at = exchange.first_byte_at or exchange.ended_at
        self.meters.done(
            path=DATA_PLANE.get(exchange.path.partition(b"?")[0], "other"),
            status=exchange.status,
            model=exchange.model,
            key_id=key_id,
            replica_id=replica.id if replica is not None else "",
            version=exchange.version,
            duration_s=exchange.ended_at - exchange.started_at,
            first_byte_s=first_byte_at - exchange.started_at,
            prompt_tokens=prompt,
            completion_tokens=completion,
            streamed=exchange.streamed,
        )
        if self._access_log is not None or self._tracer is not None:
            self._report(exchange, exchange.ended_at, prompt, completion)

    def _replica_changed(self, replica: Replica) -> None:
        if replica.is_ready:
            held, self._held = self._held, {}
            self.meters.held = 0
            for exchange in held:
                if not exchange.done:
                    exchange.dispatch()
            return
        for upstream in list(replica.idle):
            upstream.abort()
        replica.idle.clear()
        if replica not in self.pool.replicas:
            self.router.forget(replica)

    async def _sweep(self) -> None:
        """Every half second, look after what does not move by itself."""
        due = self.loop.time()
        while True:
            due += _SWEEP_S
            await asyncio.sleep(max(0.0, due - self.loop.time()))
            self.meters.loop_lag_s = max(0.0, self.loop.time() - due)
            due = self.loop.time()
            now = clock()
            for lane in list(self._lanes):
                lane.sweep(now)
            self._sweep_held(now)
            self.meters.connections = len(self._lanes)
            self.meters.spills = self.router.spills
            self.meters.swaps = self._swaps()
            self.meters.sample(now, sum(r.in_flight for r in self.pool.replicas))
            for replica in self.pool.replicas:
                self._sweep_replica(replica, now)

    def _sweep_held(self, now: float) -> None:
        late = [held for held in self._held if now - held.held_at > self.limits.hold_s]
        for exchange in late:
            self.meters.refused("held_too_long")
            exchange.refuse(
                503,
                f"no replica became ready within {self.limits.hold_s:.0f} s",
                kind="service_unavailable_error",
                code="no_replica_ready",
                retry_after_s=5,
            )

    def _sweep_replica(self, replica: Replica, now: float) -> None:
        """End streams that stalled, and idle connections before the engine does."""
        stall_s = self.limits.stall_timeout_s
        stalled = [
            exchange
            for exchange in replica.active
            if isinstance(exchange, Exchange)
            and exchange.bytes_out  # a first byte may take as long as there is a queue
            and not exchange.client.is_stuck
            and now - exchange.read_at > stall_s
        ]
        for exchange in stalled:
            exchange.replica_lost(f"no byte came for {stall_s:.0f} s")
        for upstream in [up for up in replica.idle if now - up.idle_since > _IDLE_UPSTREAM_S]:
            upstream.abort()
            replica.idle.pop(upstream, None)

    def _report(self, exchange: Exchange, now: float, prompt: int, completion: int) -> None:
        record: dict[str, Any] = {
            "path": exchange.path.partition(b"?")[0].decode("latin-1"),
            "status": exchange.status,
            "duration_s": now - exchange.started_at,
            "first_byte_s": (exchange.first_byte_at or now) - exchange.started_at,
            "key": exchange.account.id if exchange.account is not None else "",
            "model": exchange.model,
            "version": exchange.version,
            "replica": exchange.replica.id if exchange.replica is not None else "",
            "request_id": (exchange.request_id or b"").decode("latin-1"),
            "traceparent": (exchange.traceparent or b"").decode("latin-1"),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "streamed": exchange.streamed,
            "retries": exchange.retries,
            "bytes": exchange.bytes_out,
        }
        if self._access_log is not None:
            self._access_log.write(record)
        if self._tracer is not None:
            self._tracer.record(record)


def _described(wanted: Wanted) -> str:
    if wanted.exact is not None:
        return f"{wanted.name}@{wanted.exact}"
    return f"{wanted.name} at version {wanted.minimum} or later"


def policy_names(pool: Pool) -> Collection[str]:
    """Return the names that some replica serves."""
    return {name for replica in pool.replicas for name in replica.served}
