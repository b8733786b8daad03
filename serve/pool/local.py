"""A pool of engines on this machine: started, watched, restarted, drained, scaled. Knows no vLLM.

Each place in the pool has a task that keeps an engine there: it starts one, waits for its death or
for the order to leave, and starts the next one, later and later if they keep dying.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from serve.engine.base import Engine
from serve.errors import ConfigError, EngineDied, PortInUse, ServeError
from serve.pool.base import Pool
from serve.pool.health import Health
from serve.pool.replicas import Replica, ReplicaState
from serve.pool.scaling import Scaler, Scaling

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_DRAIN_POLL_S = 0.02
_MOST_DOUBLINGS = 30


@dataclass(slots=True, kw_only=True, eq=False)
class _Place:
    """One engine's place: its replica of the moment, and the order to leave it empty."""

    index: int
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    hung: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its engine will not come back by itself."""
    why_hung: str = ""
    """Empty where it was just down for too long."""
    alarm: asyncio.TimerHandle | None = None
    """Sets `hung`, unless the replica changes before."""
    replica: Replica | None = None
    ready_at_s: float | None = None
    """Since when its engine of the moment has been of use."""
    deaths: int = 0
    """Engines in a row that died here before they had been of use for long."""
    task: "asyncio.Task[None] | None" = None


class LocalPool(Pool):
    """Engines from `engine(index, port)`, on loopback; `health` are the options of `Health`.

    `index` counts the places from 0. A death before any replica was ever ready is fatal: the next
    engine would die of the same. There are never more engines than `scaling.most`, those that
    leave included: they share the machine's memory. One that lives, but is down for `hung_s`, or
    is to be renewed, is started anew.
    """

    def __init__(
        self,
        engine: Callable[[int, int], Engine],
        scaling: Scaling,
        *,
        start_timeout_s: float = 900.0,
        drain_s: float = 60.0,
        first_backoff_s: float = 1.0,
        most_backoff_s: float = 60.0,
        scale_every_s: float = 1.0,
        hung_s: float = 60.0,
        steady_s: float = 60.0,
        **health: Any,  # noqa: ANN401  # Health's
    ) -> None:
        """After `steady_s` of use an engine's death is the first again."""
        super().__init__()
        self._engine = engine
        self._scaling = scaling
        self._scaler = Scaler(scaling)
        self._start_timeout_s = start_timeout_s
        self._drain_s = drain_s
        self._first_backoff_s = first_backoff_s
        self._most_backoff_s = most_backoff_s
        self._scale_every_s = scale_every_s
        self._hung_s = hung_s
        self._steady_s = steady_s
        self._health = Health(self, **health)
        self._places: list[_Place] = []
        self._leaving: set[_Place] = set()
        self._desired = scaling.least
        self._was_ready = False
        self._is_stopped = False
        self._autoscaler: asyncio.Task[None] | None = None
        self.listeners.append(self._note)

    @property
    def desired(self) -> int:
        """How many replicas there shall be."""
        return self._desired

    @property
    def knows_all(self) -> bool:
        """Whether a name that no replica has does not exist: all engines serve the same policy."""
        return True

    @property
    def can_wake(self) -> bool:
        """Always, unless the pool has given up."""
        return not self.fatal.done()

    async def start(self) -> None:
        """Begin to start the engines."""
        self._fit()
        scaling = self._scaling
        if scaling.most > scaling.least or scaling.idle_to_zero_s is not None:
            self._autoscaler = asyncio.create_task(self._autoscale())

    async def stop(self) -> None:
        """Stop every engine, without waiting for requests: the gateway has done that."""
        self._is_stopped = True
        if self._autoscaler is not None:
            self._autoscaler.cancel()
            await asyncio.gather(self._autoscaler, return_exceptions=True)
            self._autoscaler = None
        self._desired = 0
        await self._health.stop()  # first: an engine that is told to go is not down
        tasks = [place.task for place in (*self._places, *self._leaving) if place.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._places.clear()
        self._leaving.clear()

    def wake(self) -> None:
        """Start one engine if there shall be none now."""
        if self._desired == 0 and not self.fatal.done():
            self._desired = max(1, self._scaling.least)
            self._fit()

    def failed(self, replica: Replica, reason: str) -> None:
        """Take a replica out until a probe succeeds, or its engine was restarted."""
        self._health.failed(replica, reason)

    def renew(self, replica: Replica, reason: str) -> None:
        """Start its engine anew, later and later if that does not help."""
        for place in self._places:
            if place.replica is replica and not replica.is_ready:
                place.why_hung = reason
                place.hung.set()

    async def scale(self, count: int) -> None:
        """Want so many replicas; raise ConfigError beyond the most there may be."""
        if not 0 <= count <= self._scaling.most:
            raise ConfigError(f"expected 0 to {self._scaling.most} replicas, got {count}")
        self._desired = count
        self._fit()

    def _fit(self) -> None:
        """Make as many places as are wanted; empty what is too much, idle ones first."""
        if self._is_stopped:
            return
        while len(self._places) > self._desired:
            place = min(self._places, key=_worth)
            self._places.remove(place)
            self._leaving.add(place)
            place.leave.set()
        while len(self._places) < min(self._desired, self._scaling.most - len(self._leaving)):
            taken = {place.index for place in (*self._places, *self._leaving)}
            place = _Place(index=min(set(range(len(taken) + 1)) - taken))
            self._places.append(place)
            place.task = asyncio.create_task(self._keep(place))

    async def _keep(self, place: _Place) -> None:
        """Keep an engine in a place until it is to be left."""
        try:
            died: Exception | None = None
            while not place.leave.is_set():
                died = await self._run(place, died)
                if died is None or place.leave.is_set():
                    return
                logger.warning("replica-%s ended: %s", place.index, died)
                # The next engine gets another port, but everything else will be the same.
                if not self._was_ready and not isinstance(died, PortInUse):
                    if not self.fatal.done():
                        self.fatal.set_result(EngineDied(str(died)))
                    return
                place.deaths = 1 if self._was_steady(place) else place.deaths + 1
        finally:
            self._leaving.discard(place)
            self._fit()

    def _backoff_s(self, deaths: int) -> float:
        doublings = min(deaths - 1, _MOST_DOUBLINGS)
        return min(self._most_backoff_s, self._first_backoff_s * 2.0**doublings)

    def _was_steady(self, place: _Place) -> bool:
        now_s = asyncio.get_running_loop().time()
        return place.ready_at_s is not None and now_s - place.ready_at_s >= self._steady_s

    async def _back_off(self, place: _Place, replica: Replica, died: Exception) -> None:
        """Wait before the next engine, in the table for all to see."""
        backoff_s = self._backoff_s(place.deaths)
        why = str(died).partition("\n")[0]
        replica.state = ReplicaState.DOWN
        replica.reason = f"restart {place.deaths} in {backoff_s:g} s: {why}"
        self.tell(replica)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(backoff_s):
                await place.leave.wait()
        replica.state = ReplicaState.STARTING
        replica.reason = f"restart {place.deaths}: {why}"

    async def _run(self, place: _Place, before: Exception | None) -> Exception | None:
        """Run one engine; return what ended it, or None when it left because it was told to.

        `before` is what ended the one before it: then it waits a while first.
        """
        place.ready_at_s = None
        try:
            with _held_port() as port:
                replica = place.replica = Replica(f"replica-{place.index}", _HOST, port)
                self.replicas.append(replica)
                try:
                    if before is not None:
                        await self._back_off(place, replica, before)
                    place.hung.clear()
                    place.why_hung = ""
                    return None if place.leave.is_set() else await self._serve(place, replica)
                finally:
                    await self._retire(replica)
        except (ServeError, OSError) as error:
            return error
        except Exception as error:
            # Whatever ended it, its place is to be filled again: nobody else would do that.
            logger.exception("the engine of replica-%s failed", place.index)
            return error

    async def _serve(self, place: _Place, replica: Replica) -> EngineDied | None:
        self.tell(replica)
        async with self._engine(place.index, replica.port) as engine:
            died = await self._live(place, replica, engine)
            if died is None:
                await self._drain(replica)
            # Before its connections break, so that nothing more is sent there.
            await self._retire(replica)
            return died

    async def _live(self, place: _Place, replica: Replica, engine: Engine) -> EngineDied | None:
        """Return how the engine ended, or None when it is to leave."""
        leave = asyncio.create_task(place.leave.wait())
        hung = asyncio.create_task(place.hung.wait())
        loading = asyncio.create_task(engine.wait_ready(self._start_timeout_s))
        try:
            await _first(loading, leave, engine.died)
            if loading.done() and not (place.leave.is_set() or engine.died.done()):
                loading.result()
                self._health.watch(replica)
                await _first(hung, leave, engine.died)
        finally:
            for task in (leave, hung, loading):
                task.cancel()
            await asyncio.gather(leave, hung, loading, return_exceptions=True)
        if engine.died.done():
            return engine.died.result()
        if place.leave.is_set():
            return None
        down = f"it was down for {self._hung_s:g} s: {replica.reason}"
        return EngineDied(place.why_hung or down)

    async def _drain(self, replica: Replica) -> None:
        """Take no more requests, and wait for those in flight."""
        replica.state = ReplicaState.DRAINING
        self.tell(replica)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while replica.in_flight:  # noqa: ASYNC110  # counted on the hot path, without events
                    await asyncio.sleep(_DRAIN_POLL_S)

    async def _retire(self, replica: Replica) -> None:
        """Let it go, once; whatever is still in flight there goes elsewhere or ends visibly."""
        await self._health.forget(replica)
        if replica.state is ReplicaState.STOPPED:
            return
        replica.state = ReplicaState.STOPPED
        self.replicas.remove(replica)
        for exchange in list(replica.active):
            exchange.replica_lost("its engine has ended")
        self.tell(replica)

    def _note(self, replica: Replica) -> None:
        """Note since when a place's engine serves; set an alarm for one that is down."""
        places = (*self._places, *self._leaving)
        place = next((place for place in places if place.replica is replica), None)
        if place is None:
            return
        if place.alarm is not None:
            place.alarm.cancel()
            place.alarm = None
        if replica.is_ready:
            self._was_ready = True
            if place.ready_at_s is None:
                place.ready_at_s = asyncio.get_running_loop().time()
        elif replica.state is ReplicaState.DOWN:
            loop = asyncio.get_running_loop()
            place.alarm = loop.call_later(self._hung_s, place.hung.set)

    async def _autoscale(self) -> None:
        """Follow the demand until cancelled."""
        loop = asyncio.get_running_loop()
        loaded_at_s = loop.time()
        while True:
            await asyncio.sleep(self._scale_every_s)
            if any(_is_coming(place.replica) for place in self._places):
                loaded_at_s = loop.time()
                continue  # what is loading is neither stopped nor doubled
            demand = self.demand()
            # Nobody could be anything but idle while all was loading.
            demand = replace(demand, idle_s=min(demand.idle_s, loop.time() - loaded_at_s))
            wanted = self._scaler.wanted(demand, self._desired, loop.time())
            if wanted != self._desired:
                logger.info("scaling from %s to %s replicas", self._desired, wanted)
                self._desired = wanted
                self._fit()


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    """Keep a port for an engine, which may listen only after a minute of loading.

    A socket that is bound and does not listen is in no listener's way; without it the system may
    give the port to one of the gateway's own connections meanwhile.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((_HOST, 0))
        yield held.getsockname()[1]


async def _first(*futures: "asyncio.Future[Any]") -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _worth(place: _Place) -> tuple[int, int]:
    """Order places by how much is lost with them: nothing there, then the least busy."""
    replica = place.replica
    if replica is None or not replica.is_ready:
        return (0, 0)
    return (1, replica.in_flight + replica.sessions)


def _is_coming(replica: Replica | None) -> bool:
    return replica is None or replica.state in (ReplicaState.STARTING, ReplicaState.SYNCING)
