"""Keeps the replicas of a pool at the versions that the store's pointers name.

The pointers are read each second, so that a notification that was missed only delays; replicas
change one after the other. Knows no route and no client.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from serve.engine.vllm import ServedModel, VllmAdmin
from serve.errors import EngineError, SwapFailed
from serve.policies.gate import Proof
from serve.policies.link import Asked, Link
from serve.policies.mover import Mover
from serve.policies.store import PolicyStore
from serve.policies.target import target_of
from serve.pool.base import Pool
from serve.pool.lookout import Lookout
from serve.pool.replicas import Replica, encoded
from serve.wire import BadReference, SwapMode

logger = logging.getLogger(__name__)

_MOST_BACKOFF_S = 60.0
_REFUSALS = 3
"""So often in a row a replica that is out refuses a version before it gets a new engine."""


class Sync:
    """The sync of one pool with one store, from entering to leaving.

    `boots` says which version of a policy an engine holds that was just started; a policy that
    is not in it is registered when an engine with it shows up. `pinned` are LoRA versions to be
    kept loaded whatever their age; it may be replaced at any time. `lookout` sees to the replicas
    that are gateways: those follow the store by themselves.
    """

    def __init__(
        self,
        store: PolicyStore,
        pool: Pool,
        *,
        boots: Mapping[str, int] | None = None,
        admin: Callable[[str], VllmAdmin] = VllmAdmin,
        most_adapters: int = 4,
        drain_timeout_s: float = 60.0,
        poll_s: float = 1.0,
        lookout: Lookout | None = None,
    ) -> None:
        self.pinned: Mapping[str, Collection[int]] = {}
        self._store = store
        self._pool = pool
        self._boots = dict(boots or {})
        self._admin = admin
        self._most_adapters = most_adapters
        self._poll_s = poll_s
        self._mover = Mover(store, pool.tell, drain_timeout_s)
        self._lookout = lookout
        self._links: dict[str, Link] = {}
        self._seen: dict[str, int | None] = {}
        self._rolling = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        store.holders.append(self.in_use)
        if lookout is not None:
            store.holders.append(lookout.in_use)

    @property
    def boots(self) -> Mapping[str, int]:
        """Policy -> the version that a freshly started engine holds."""
        return self._boots

    @property
    def names(self) -> set[str]:
        """The policies that are served, though maybe by no replica at this moment."""
        return set(self._boots) | (self._lookout.names if self._lookout is not None else set())

    @property
    def swaps(self) -> int:
        """How often full weights were changed on an engine."""
        return self._mover.swaps

    @property
    def proofs(self) -> Mapping[str, Proof]:
        """Replica -> what it last said to the probes of a version."""
        return {id_: link.proof for id_, link in self._links.items() if link.proof is not None}

    def in_use(self, name: str) -> dict[int, str]:
        """Return the versions of a policy that must not be pruned, and why; from any thread."""
        used = dict.fromkeys(self.pinned.get(name, ()), "the rules name it")
        for replica in list(self._pool.replicas):
            link = self._links.get(replica.id)
            if link is not None and link.name == name:
                used |= dict.fromkeys(link.versions(replica), f"{replica.id} serves it")
        return used

    async def prepare(self, replica: Replica) -> None:
        """Bring a healthy replica that takes no requests yet to the current versions.

        Fills in `served` and `current`. Raises EngineError or PolicyError if it is not to serve;
        an engine whose weights cannot be changed serves what it has.
        """
        if self._lookout is not None:
            replica.labels = await self._lookout.recognises(replica)
            if replica.labels:
                self._links.pop(replica.id, None)
                await self._lookout.prepare(replica)
                return
        link = self._links.setdefault(replica.id, Link())
        async with link.lock, self._admin(replica.base_url) as engine:
            link.forget()
            await engine.resume()
            bases = [model for model in await engine.models() if model.parent is None]
            if len(bases) != 1 or await engine.weight_info() is None:
                await self._take_as_it_is(replica, bases)
                return
            name = bases[0].name
            await self._mover.look(replica, link, engine, name, await self._boot(bases[0]))
            try:
                if asked := await self._asked(link):
                    await self._bring(replica, link, engine, asked, SwapMode.KEEP)
            except SwapFailed as error:
                if link.base is None or self._somebody_differs(name, [replica]):
                    self._kept_out(replica, link, error)
                    raise
                self._refused(replica, link, error)

    async def converge(self, name: str, swap: SwapMode) -> None:
        """Bring every ready replica of a policy to its current versions, one after the other.

        A replica that refuses goes on with what it has if all others do, too; where another one
        has taken the new version it is taken out, until it takes it as well.
        """
        if self._lookout is not None:
            self._lookout.hurry()
        async with self._rolling:
            refused: list[Replica] = []
            for replica in list(self._pool.replicas):
                link = self._links.get(replica.id)
                if link and link.name == name and replica.is_ready:
                    try:
                        await self._move(replica, link, swap)
                    except SwapFailed as error:
                        self._refused(replica, link, error)
                        refused.append(replica)
            if refused and self._somebody_differs(name, refused):
                for replica in refused:
                    self._pool.failed(replica, replica.reason)

    async def _move(self, replica: Replica, link: Link, swap: SwapMode) -> None:
        """Bring one replica to where the pointer is now; raise SwapFailed if it stays behind."""
        is_early = asyncio.get_running_loop().time() < link.retry_at_s
        async with link.lock:
            asked = await self._asked(link) if replica.is_ready else None
            if asked is None or (is_early and asked == link.refused):
                return
            try:
                async with self._admin(replica.base_url) as engine:
                    await self._bring(replica, link, engine, asked, swap)
            except SwapFailed:
                raise
            except EngineError as error:
                logger.warning("%s was lost during a swap: %s", replica.id, error)
                self._pool.failed(replica, str(error))

    async def _asked(self, link: Link) -> Asked | None:
        """Return what a replica is to be brought to; None if it is there."""
        assert link.name is not None
        latest = await asyncio.to_thread(self._store.latest, link.name)
        if latest is None:
            return None
        asked = latest, frozenset(self.pinned.get(link.name, ()))
        return None if link.asked == asked else asked

    async def _bring(
        self, replica: Replica, link: Link, engine: VllmAdmin, asked: Asked, swap: SwapMode
    ) -> None:
        assert link.name is not None
        latest, pinned = asked
        if asked != link.refused:
            link.refused, link.failures = asked, 0
        target = await asyncio.to_thread(
            target_of, self._store, link.name, latest, self._most_adapters, pinned
        )
        await self._mover.bring(replica, link, engine, target, swap)
        link.asked, link.refused = asked, None
        link.failures, link.retry_at_s, replica.reason = 0, 0.0, ""

    def _refused(self, replica: Replica, link: Link, error: SwapFailed) -> None:
        """Remember why a replica stayed behind, and ask it again later and later."""
        link.failures += 1
        wait_s = min(_MOST_BACKOFF_S, 2.0 ** (link.failures - 1))
        link.retry_at_s = asyncio.get_running_loop().time() + wait_s
        replica.reason = f"stays at version {replica.current.get(link.name or '')}: {error}"
        logger.warning("%s %s", replica.id, replica.reason)
        self._pool.tell(replica)

    def _kept_out(self, replica: Replica, link: Link, error: SwapFailed) -> None:
        """Have the engine of a replica that others serve without started anew, if it goes on so."""
        link.failures += 1
        if link.failures % _REFUSALS == 0:
            self._pool.renew(replica, f"it refused {link.failures} times: {error}")

    def _somebody_differs(self, name: str, refused: list[Replica]) -> bool:
        """Whether a ready replica serves a version that the refusing ones do not."""
        stayed = {replica.current.get(name) for replica in refused}
        return any(
            replica.is_ready and replica.current.get(name, 0) not in stayed
            for replica in self._pool.replicas
            if replica not in refused and name in replica.current
        )

    async def _take_as_it_is(self, replica: Replica, models: list[ServedModel]) -> None:
        """Serve each of the models as version 1 of its name: nothing here can change them."""
        replica.served, replica.current = {}, {}
        for model in models:
            try:
                version = await self._boot(model)
            except BadReference as error:
                logger.warning("%s serves a model that nobody can ask for: %s", replica.id, error)
                continue
            replica.served[model.name] = {version: encoded(model.name)}
            replica.current[model.name] = version
        await self._explain(replica)

    async def _explain(self, replica: Replica) -> None:
        """Say which versions an engine that cannot be changed does not follow."""
        behind = [
            f"{name}@{latest}"
            for name, version in replica.current.items()
            if (latest := await asyncio.to_thread(self._store.latest, name)) not in (None, version)
        ]
        replica.reason = f"its weights cannot be changed to {', '.join(behind)}" if behind else ""

    async def _boot(self, model: ServedModel) -> int:
        """Return the version that a freshly started engine with this model holds."""
        version = self._boots.get(model.name)
        if version is None:
            root = Path(model.root) if model.root else None
            checkpoint = root if root and (root / "config.json").is_file() else None
            info = await asyncio.to_thread(self._store.register, model.name, checkpoint)
            version = self._boots[model.name] = info.version
        return version

    async def _watch(self) -> None:
        """Follow the pointers until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self._follow()
            except Exception:  # the watch must outlive whatever one round meets
                logger.exception("following the policies failed; trying again")

    async def _follow(self) -> None:
        """Converge every policy whose pointer moved, and unload what nobody uses any more."""
        await asyncio.to_thread(self._store.refresh)
        alive = {replica.id: replica for replica in self._pool.replicas}
        for id_ in self._links.keys() - alive.keys():
            del self._links[id_]
        for name in sorted({link.name for link in self._links.values() if link.name}):
            latest = await asyncio.to_thread(self._store.latest, name)
            # Who moved it may be about to say how to swap: a second look leaves time for that.
            if self._seen.get(name) == latest:
                await self.converge(name, await asyncio.to_thread(self._store.swap, name))
            self._seen[name] = latest
        for id_, link in list(self._links.items()):
            replica = alive.get(id_)
            if replica is None or not replica.is_ready or link.lock.locked():
                continue
            if link.name is None:
                await self._explain(replica)
            elif link.leaving:
                async with link.lock, self._admin(replica.base_url) as engine:
                    await self._mover.unload_idle(replica, link, engine)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
