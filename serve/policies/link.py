"""One replica's way to the versions it should serve: swap, load, unload, and say so truthfully.

A replica's `served` and `current` change here alone, and only to what its engine really holds.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from serve.engine.vllm import CHANGING, UNLABELLED, ServedModel, VllmAdmin
from serve.errors import BadCheckpoint, EngineNotReady, SwapFailed, UnknownPolicy
from serve.policies.manifest import PolicyInfo
from serve.policies.store import PolicyStore
from serve.policies.target import Target
from serve.pool.replicas import Exchange, Replica, ReplicaState, encoded
from serve.wire import BadReference, PolicyRef, SwapMode

logger = logging.getLogger(__name__)

Asked = tuple[int, frozenset[int]]
"""What a policy's replicas are to be brought to: the pointer's version, and the pinned ones."""

_POLL_S = 0.005


@dataclass(slots=True, kw_only=True)
class Link:
    """What the sync remembers of one replica. `name` is None where nothing can be changed."""

    name: str | None = None
    base: int | None = None
    """The full version that its engine holds; None if nobody knows."""
    asked: Asked | None = None
    """What it was brought to."""
    leaving: dict[int, set[Exchange]] = field(default_factory=dict)
    """Adapters served no more -> the requests that may still use them."""
    retry_at_s: float = 0.0
    failures: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def forget(self) -> None:
        """Know nothing of the engine, which may have been replaced."""
        self.name = self.base = self.asked = None
        self.leaving.clear()


class Mover:
    """Moves a replica to a target through its engine."""

    def __init__(
        self, store: PolicyStore, tell: Callable[[Replica], None], drain_timeout_s: float
    ) -> None:
        self._store = store
        self._tell = tell
        self._drain_timeout_s = drain_timeout_s
        self.swaps = 0
        """Full weights changed on an engine."""

    async def look(
        self, replica: Replica, link: Link, engine: VllmAdmin, name: str, boot: int
    ) -> None:
        """Find out what the engine of the policy `name` holds, and let the replica say it."""
        label = await engine.weight_info()
        if label == UNLABELLED:
            await engine.label_weights(f"{name}@{boot}")
            label = f"{name}@{boot}"
        link.name, link.base = name, _version_in(label, name)
        replica.served, replica.current = {}, {}
        replica.leaving = link.leaving
        if link.base is not None:
            _say_only(replica, name, link.base)
        for adapter in await engine.models():
            version = _version_in(adapter.name, name) if adapter.parent else None
            if version is None:
                continue
            if await asyncio.to_thread(self._is_over, name, version, link.base, adapter):
                replica.served[name][version] = encoded(adapter.name)
            else:
                await engine.unload_lora(adapter.name)

    async def bring(
        self, replica: Replica, link: Link, engine: VllmAdmin, target: Target, swap: SwapMode
    ) -> None:
        """Make the replica serve the target. SwapFailed: it serves what it did, for sure."""
        if link.base == target.base.version:
            await self._adapt(replica, link, engine, target)
        else:
            await self._verify(target.base)
            over_old = len(replica.served.get(target.base.name, ())) > 1
            # An adapter's requests cannot go on over another base.
            swap = SwapMode.WAIT if over_old and swap is SwapMode.KEEP else swap
            async with self._aside(replica, swap):
                await self._change_base(replica, link, engine, target.base, swap)
                await self._adapt(replica, link, engine, target)
        self._tell(replica)

    async def unload_idle(self, replica: Replica, link: Link, engine: VllmAdmin) -> None:
        """Unload the adapters that no request uses any more."""
        for version, users in list(link.leaving.items()):
            if users.isdisjoint(replica.active):
                await engine.unload_lora(f"{link.name}@{version}")
                del link.leaving[version]

    async def _change_base(
        self, replica: Replica, link: Link, engine: VllmAdmin, base: PolicyInfo, swap: SwapMode
    ) -> None:
        adapters = [
            version for version in replica.served.get(base.name, ()) if version != link.base
        ]

        def applied() -> None:
            link.base, link.asked = base.version, None
            _say_only(replica, base.name, base.version)
            replica.leaving = ()  # over another base they are not what they were

        await engine.swap_weights(str(base.path), base.label, swap, applied)
        found = await engine.weight_info()
        if found != base.label:
            raise EngineNotReady(f"it says it serves {found} after a swap to {base.label}")
        self.swaps += 1
        for version in {*adapters, *link.leaving}:
            await engine.unload_lora(f"{base.name}@{version}")
        link.leaving.clear()
        replica.leaving = link.leaving

    async def _adapt(self, replica: Replica, link: Link, engine: VllmAdmin, target: Target) -> None:
        """Load the adapters that are missing, then let go of those that are not wanted."""
        name = target.base.name
        served = replica.served[name]
        for info in target.adapters:
            if info.version in link.leaving:
                del link.leaving[info.version]
            elif info.version not in served:
                try:
                    await self._verify(info)
                    await engine.load_lora(info.label, str(info.path))
                except SwapFailed:
                    if info is target.latest:
                        raise
                    logger.warning("%s cannot serve %s", replica.id, info.label, exc_info=True)
                    continue
            served[info.version] = encoded(info.label)
        replica.current[name] = target.latest.version
        wanted = {target.base.version, *(info.version for info in target.adapters)}
        for version in [version for version in served if version not in wanted]:
            del served[version]
            link.leaving[version] = set(replica.active)
        await self.unload_idle(replica, link, engine)

    @contextlib.asynccontextmanager
    async def _aside(self, replica: Replica, swap: SwapMode) -> AsyncIterator[None]:
        """Send no new request to a ready replica meanwhile, unless requests shall go on."""
        if replica.state is not ReplicaState.READY or swap is SwapMode.KEEP:
            yield
            return
        replica.state = ReplicaState.SYNCING
        self._tell(replica)
        is_intact = False
        try:
            if swap is SwapMode.WAIT:
                await self._drained(replica)
            yield
            is_intact = True
        except SwapFailed:
            is_intact = True
            raise
        finally:
            # Whoever took it out meanwhile had a reason of his own.
            if is_intact and replica.state is ReplicaState.SYNCING:
                replica.state = ReplicaState.READY
                self._tell(replica)

    async def _drained(self, replica: Replica) -> None:
        """Wait for the requests in flight; who takes too long goes on with the new weights."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._drain_timeout_s
        # The count is the fast lane's, which is not to set an event at every request's end.
        while replica.in_flight and loop.time() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        if replica.in_flight:
            logger.warning(
                "%s still has %d requests: they go on with other weights, and say so",
                replica.id,
                replica.in_flight,
            )

    async def _verify(self, info: PolicyInfo) -> None:
        if info.path is None:
            raise SwapFailed(f"the weights of {info.label} are not here")
        try:
            await asyncio.to_thread(self._store.verify, info)
        except BadCheckpoint as error:
            raise SwapFailed(str(error)) from error

    def _is_over(self, name: str, version: int, base: int | None, adapter: ServedModel) -> bool:
        try:
            known = self._store.info(name, version)
        except UnknownPolicy:
            return False
        return known.base == base and adapter.root == str(known.path)


def _say_only(replica: Replica, name: str, version: int) -> None:
    """Say that the engine's base model, which has the policy's name, is this version."""
    replica.served[name] = {version: encoded(name)}
    replica.current[name] = version


def _version_in(label: str | None, name: str) -> int | None:
    """Return the version that a label gives to this policy's weights, if it does."""
    if label is None or label == CHANGING:
        return None
    try:
        labelled = PolicyRef.parse(label)
    except BadReference:
        return None
    return labelled.version if labelled.name == name else None
