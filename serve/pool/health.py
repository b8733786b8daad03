"""Whether replicas are well: probes, what the data plane saw, and the way back into rotation.

STARTING or DOWN -> a good probe -> SYNCING while `pool.prepare` brings the right weights -> READY.
READY -> a connection failed, several probes in a row did, or nothing moves any more -> DOWN.
Knows no engine: it asks for /health, and where there is none, for /v1/models.
"""

import asyncio
import contextlib
import errno
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from serve.errors import ServeError
from serve.pool.base import Pool
from serve.pool.replicas import Replica, ReplicaState

logger = logging.getLogger(__name__)

Probe = Callable[[Replica, float], Awaitable[str | None]]
"""Asks a replica, within so many seconds; returns None if it is well, else what is wrong."""
OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL))
"""Why a connection cannot be made for want of something here: no fault of the replica's."""
Scrape = Callable[[Replica], Awaitable[dict[str, float]]]
"""Reads the few engine metrics that are shown."""

_SCRAPE_EVERY = 2
_PATIENCE_S = 30.0
"""How long requests wait for the only replica when it does not answer its probes."""
_MOST_REST_S = 10.0
_WEDGE_REST_S = 120.0
_STEADY_S = 3.0
"""Who fails again sooner than this after coming back has not really come back."""
_EASE_IN_S = 3.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Watch:
    """What is remembered of a replica that is looked after. Times are the loop's."""

    kick: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it went down, so that it is probed at once."""
    task: asyncio.Task[None] | None = None
    rounds: int = 0
    bad: int = 0
    """Failed probes in a row."""
    bad_since_s: float = 0.0
    ready_at_s: float = -math.inf
    rest_s: float = 0.0
    """How long it was last kept out although its probes were good."""
    rests_until_s: float = -math.inf
    easing: asyncio.TimerHandle | None = None
    progress: tuple[int, dict[str, float]] | None = None
    heard_s: float = 0.0
    moved_at_s: float = 0.0


class Health:
    """Watches the replicas of a pool, each in a task of its own.

    `failures` bad probes in a row take a replica out; so does a probe that is good while for
    `wedge_s` none of its requests and none of its counters has moved.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        interval_s: float = 1.0,
        down_interval_s: float = 0.25,
        timeout_s: float = 2.0,
        failures: int = 2,
        wedge_s: float = 300.0,
        probe: Probe | None = None,
        scrape: Scrape | None = None,
    ) -> None:
        self._pool = pool
        self._interval_s = interval_s
        self._down_interval_s = down_interval_s
        self._timeout_s = timeout_s
        self._failures = failures
        self._wedge_s = wedge_s
        self._probe = probe or http_probe
        self._scrape = scrape
        self._watches: dict[Replica, _Watch] = {}

    def watch(self, replica: Replica) -> None:
        """Begin to look after a replica."""
        watch = self._watches[replica] = _Watch()
        watch.task = asyncio.create_task(self._watch(replica, watch))

    async def forget(self, replica: Replica) -> None:
        """Look after it no more."""
        watch = self._watches.pop(replica, None)
        if watch is None or watch.task is None:
            return
        if watch.easing is not None:
            watch.easing.cancel()
        watch.task.cancel()
        await asyncio.gather(watch.task, return_exceptions=True)

    async def stop(self) -> None:
        """Look after nobody any more."""
        for replica in list(self._watches):
            await self.forget(replica)

    def failed(self, replica: Replica, reason: str) -> None:
        """Take a replica out at once; requests in flight there go on: they may well be alive.

        One that fails again and again although its probes are good stays out, for longer each
        time, while others serve.
        """
        replica.errors += 1
        if replica.state not in (ReplicaState.READY, ReplicaState.SYNCING):
            return
        if watch := self._watches.get(replica):
            if _now_s() - watch.ready_at_s >= _STEADY_S:
                watch.rest_s = 0.0
            elif self._others_serve(replica):
                self._rest(watch)
        self._down(replica, reason)

    def _down(self, replica: Replica, reason: str) -> None:
        replica.state = ReplicaState.DOWN
        replica.reason = reason
        logger.warning("%s is down: %s", replica.id, reason)
        if watch := self._watches.get(replica):
            watch.kick.set()
        self._pool.tell(replica)

    async def _watch(self, replica: Replica, watch: _Watch) -> None:
        """Probe until cancelled."""
        while True:
            watch.kick.clear()
            try:
                await self._round(replica, watch)
            except Exception as error:
                # A watch never ends by itself: nobody else would bring its replica back.
                logger.exception("looking after %s failed", replica.id)
                self._ill(replica, watch, f"{type(error).__name__}: {error}")
            await self._wait(replica, watch)

    async def _round(self, replica: Replica, watch: _Watch) -> None:
        problem = await self._probe(replica, self._timeout_s)
        watch.rounds += 1
        if problem is not None:
            self._ill(replica, watch, problem)
            return
        watch.bad = 0
        if replica.state is ReplicaState.READY:
            if watch.rounds % _SCRAPE_EVERY == 0:
                await self._read_metrics(replica)
            if self._is_wedged(replica, watch) and replica.is_ready:
                watch.rests_until_s = _now_s() + _WEDGE_REST_S
                reason = f"no request there has moved for {self._wedge_s:g} s"
                self._down(replica, reason)
                self._lose(replica, reason)
        elif _is_out(replica) and _now_s() >= watch.rests_until_s:
            await self._bring_back(replica, watch)

    def _ill(self, replica: Replica, watch: _Watch, problem: str) -> None:
        """Take a bad probe to heart: the replica goes out, and what waits there goes elsewhere."""
        watch.bad += 1
        if watch.bad == 1:
            watch.bad_since_s = _now_s()
        if _is_out(replica):
            replica.reason = problem
            watch.rest_s, watch.rests_until_s = 0.0, -math.inf  # the next one may be another one
        # While its weights change, those who change them know better.
        if watch.bad < self._failures or replica.state is ReplicaState.SYNCING:
            return
        if replica.state in (ReplicaState.STARTING, ReplicaState.READY):
            self._down(replica, problem)
        # Where nobody else serves they could only wait: it may just be busy.
        is_patient = _now_s() - watch.bad_since_s < _PATIENCE_S
        if self._others_serve(replica) or not is_patient:
            self._lose(replica, problem)

    def _others_serve(self, replica: Replica) -> bool:
        return any(other.is_ready for other in self._pool.replicas if other is not replica)

    def _lose(self, replica: Replica, reason: str) -> None:
        for exchange in list(replica.active):
            exchange.replica_lost(reason)

    async def _bring_back(self, replica: Replica, watch: _Watch) -> None:
        """Let it get the right weights, then let it serve."""
        was_down = replica.state is ReplicaState.DOWN
        replica.state = ReplicaState.SYNCING
        replica.reason = ""
        self._pool.tell(replica)
        problem = await self._prepare(replica)
        if problem is not None:
            self._rest(watch)
        if replica.state is not ReplicaState.SYNCING:
            return  # it failed meanwhile, or is to leave
        if problem is not None:
            self._down(replica, problem)
            return
        replica.state = ReplicaState.READY
        watch.ready_at_s = watch.moved_at_s = _now_s()
        if was_down:
            self._ease_in(replica, watch)
        logger.info("%s is ready", replica.id)
        self._pool.tell(replica)

    async def _prepare(self, replica: Replica) -> str | None:
        """Return what kept it from the right weights, if anything did."""
        if self._pool.prepare is None:
            return None
        try:
            await self._pool.prepare(replica)
        except (ServeError, OSError) as error:
            return str(error) or type(error).__name__
        except Exception as error:
            # It must not stay SYNCING, whatever was raised: nobody else would change that.
            logger.exception("preparing %s failed", replica.id)
            return f"{type(error).__name__}: {error}"
        return None

    def _rest(self, watch: _Watch) -> None:
        """Keep it out for a while, each time for twice as long."""
        watch.rest_s = min(_MOST_REST_S, max(self._down_interval_s, watch.rest_s * 2))
        watch.rests_until_s = _now_s() + watch.rest_s

    def _ease_in(self, replica: Replica, watch: _Watch) -> None:
        """Give a replica that was down less to do for its first seconds."""
        if watch.easing is not None:
            watch.easing.cancel()
        replica.weight = 0.5

        def settle() -> None:
            replica.weight = 1.0

        watch.easing = asyncio.get_running_loop().call_later(_EASE_IN_S, settle)

    def _is_wedged(self, replica: Replica, watch: _Watch) -> bool:
        """Whether there are requests, and for very long not one of them has moved.

        An engine that shows no counters may be at work on one long answer: it is believed.
        """
        progress = replica.requests - replica.in_flight, replica.metrics
        if not replica.in_flight or not replica.metrics or progress != watch.progress:
            watch.progress, watch.moved_at_s = progress, _now_s()
        if _now_s() - watch.moved_at_s < self._wedge_s:
            return False
        # A stream says when it last heard something. Thousands of them are asked now only.
        heard_s = max((getattr(one, "read_at", 0.0) for one in replica.active), default=0.0)
        if heard_s != watch.heard_s:
            watch.heard_s, watch.moved_at_s = heard_s, _now_s()
            return False
        return True

    async def _wait(self, replica: Replica, watch: _Watch) -> None:
        """Wait for the next probe; a failure that somebody saw ends the wait of a good one."""
        if watch.bad or replica.state is not ReplicaState.READY:
            await asyncio.sleep(self._down_interval_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await watch.kick.wait()

    async def _read_metrics(self, replica: Replica) -> None:
        """Read them if they come soon: they are for sight only, and the next probe is due."""
        if self._scrape is not None:
            with contextlib.suppress(ServeError, OSError, ValueError):  # TimeoutError is an OSError
                async with asyncio.timeout(self._timeout_s):
                    replica.metrics = await self._scrape(replica)


async def http_probe(replica: Replica, timeout_s: float) -> str | None:
    """Ask for /health, or for /v1/models where there is no such route."""
    try:
        async with asyncio.timeout(timeout_s):
            status = await _status(replica, "/health")
            if status == 404:
                status = await _status(replica, "/v1/models")
    except TimeoutError:
        return f"no answer to a probe within {timeout_s:g} s"
    except (OSError, ValueError) as error:
        if replica.is_ready and getattr(error, "errno", None) in OURS:
            return None
        return f"probe failed: {error}"
    return None if 200 <= status < 300 else f"a probe was answered with {status}"


async def _status(replica: Replica, path: str) -> int:
    reader, writer = await asyncio.open_connection(replica.host, replica.port, ssl=replica.tls)
    try:
        writer.write(
            b"GET %b HTTP/1.1\r\n%bconnection: close\r\n\r\n" % (path.encode(), replica.host_line)
        )
        line = await reader.readline()
        if line[:7] != b"HTTP/1.":
            raise ValueError(f"expected HTTP, got {line[:40]!r}")
        return int(line[9:12])
    finally:
        writer.transport.abort()


def _is_out(replica: Replica) -> bool:
    return replica.state in (ReplicaState.STARTING, ReplicaState.DOWN)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
