"""One replica's way to the versions it should serve: swap, load, unload, and say so truthfully.

A replica's `served` and `current` change here alone, and only to what its engine really holds; to
a version with probes only after it has passed them.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from serve.engine.vllm import CHANGING, UNLABELLED, UNPROVEN, ServedModel, VllmAdmin
from serve.errors import BadCheckpoint, EngineNotReady, PolicyError, SwapFailed, UnknownPolicy
from serve.policies.gate import prove
from serve.policies.link import Held, Link, say_none, say_only, version_in
from serve.policies.manifest import PolicyInfo
from serve.policies.store import PolicyStore
from serve.policies.target import Target
from serve.pool.replicas import Replica, ReplicaState, encoded
from serve.wire import PolicyKind, Probes, SwapMode

logger = logging.getLogger(__name__)

_POLL_S = 0.005
_ABORT_TIMEOUT_S = 5.0
"""How long requests that were ended may take to be gone."""


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
        """Find out what the engine of the policy `name` holds, and let the replica say it.

        What fails its probes is not what it says it is: then nobody knows.
        """
        label = await engine.weight_info()
        version = boot if label == UNLABELLED else version_in(label, name)
        if version is not None and not await self._keeps(replica, link, engine, name, version):
            await engine.label_weights(CHANGING)
            version = None
        elif label == UNLABELLED:
            await engine.label_weights(f"{name}@{boot}")
        link.name, link.base = name, version
        adapters: dict[int, bytes] = {}
        for adapter in await engine.models():
            version = version_in(adapter.name, name) if adapter.parent else None
            if version is None:
                continue
            is_over = await asyncio.to_thread(self._is_over, name, version, link.base, adapter)
            if is_over and await self._keeps(replica, link, engine, name, version):
                adapters[version] = encoded(adapter.name)
            else:
                await engine.unload_lora(adapter.name)
        # Only now: requests in flight are labelled by it, and their weights were there all along.
        replica.served, replica.current, replica.leaving = {}, {}, link.leaving
        if link.base is not None:
            say_only(replica, name, link.base)
            replica.served[name] |= adapters

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
        """Swap to a full version; raise SwapFailed if the engine serves what it did."""
        held = link.held = link.holds(replica)
        try:
            await self._swap(replica, link, engine, base, swap)
        except SwapFailed as error:
            if held is not None and link.base is None:
                await self._go_back(replica, link, engine, held, error)
            raise
        finally:
            link.held = None

    async def _swap(
        self, replica: Replica, link: Link, engine: VllmAdmin, base: PolicyInfo, swap: SwapMode
    ) -> None:
        """Swap to a full version, and prove it. After a SwapFailed `link.base` says what it has."""
        probes = await self._probes(base)
        adapters = [
            version for version in replica.served.get(base.name, ()) if version != link.base
        ]

        def pausing() -> None:
            if probes is not None:
                self._step_aside(replica)

        def applied() -> None:
            link.base, link.asked = base.version if probes is None else None, None
            replica.leaving = ()  # over another base they are not what they were
            if probes is None:
                say_only(replica, base.name, base.version)
            else:
                say_none(replica, base.name)

        label = base.label if probes is None else f"{base.label}{UNPROVEN}"
        await engine.swap_weights(str(base.path), label, swap, applied, pausing)
        found = await engine.weight_info()
        if found != label:
            raise EngineNotReady(f"it says it serves {found} after a swap to {label}")
        self.swaps += 1
        for version in {*adapters, *link.leaving}:
            await engine.unload_lora(f"{base.name}@{version}")
        link.leaving.clear()
        replica.leaving = link.leaving
        if probes is not None:
            await self._prove(replica, link, engine, base, probes)
            await engine.label_weights(base.label)
            link.base = base.version
            say_only(replica, base.name, base.version)

    async def _go_back(
        self, replica: Replica, link: Link, engine: VllmAdmin, held: Held, why: SwapFailed
    ) -> None:
        """Serve again what was held; raise EngineNotReady if that cannot be.

        Requests that went on with the weights that failed are ended: they have tokens of theirs.
        """
        assert link.name is not None
        logger.warning("%s; it goes back to %s@%d", why, link.name, held.base)
        try:
            base = await asyncio.to_thread(self._store.info, link.name, held.base)
            await self._verify(base)
            await engine.abort_requests()
            await self._drained(replica, _ABORT_TIMEOUT_S)
            await self._swap(replica, link, engine, base, SwapMode.ABORT)
        except (SwapFailed, PolicyError) as error:
            raise EngineNotReady(
                f"{why}; and it cannot go back to {link.name}@{held.base}: {error}"
            ) from error
        served = replica.served[link.name]
        for version in held.adapters:
            try:
                info = await asyncio.to_thread(self._store.info, link.name, version)
                await self._load(replica, link, engine, info)
            except (SwapFailed, PolicyError) as error:
                logger.warning("%s lost %s@%d: %s", replica.id, link.name, version, error)
                continue
            served[version] = encoded(info.label)
        if held.current in served:
            replica.current[link.name] = held.current

    async def _adapt(self, replica: Replica, link: Link, engine: VllmAdmin, target: Target) -> None:
        """Load the adapters that are missing, then let go of those that are not wanted."""
        name = target.base.name
        served = replica.served[name]
        for info in target.adapters:
            if info.version in link.leaving:
                del link.leaving[info.version]
            elif info.version not in served:
                try:
                    await self._load(replica, link, engine, info)
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

    async def _load(
        self, replica: Replica, link: Link, engine: VllmAdmin, info: PolicyInfo
    ) -> None:
        """Load an adapter, and prove it before any request may use it; raise SwapFailed."""
        await self._verify(info)
        probes = await self._probes(info)
        await engine.load_lora(info.label, str(info.path))
        if probes is None:
            return
        try:
            await self._prove(replica, link, engine, info, probes)
        except SwapFailed:
            await engine.unload_lora(info.label)
            raise

    async def _prove(
        self, replica: Replica, link: Link, engine: VllmAdmin, info: PolicyInfo, probes: Probes
    ) -> None:
        model = info.name if info.kind is PolicyKind.FULL else info.label
        proof = await prove(engine, probes, label=info.label, model=model, replica=replica.id)
        link.proof, replica.proof = proof, (proof.label, proof.difference)

    async def _keeps(
        self, replica: Replica, link: Link, engine: VllmAdmin, name: str, version: int
    ) -> bool:
        """Whether the version that an engine says it holds passes its probes, if it has any."""
        try:
            info = await asyncio.to_thread(self._store.info, name, version)
            if (probes := await self._probes(info)) is not None:
                await self._prove(replica, link, engine, info, probes)
        except UnknownPolicy:
            return True
        except SwapFailed as error:
            logger.warning("%s does not hold what it says: %s", replica.id, error)
            return False
        return True

    @contextlib.asynccontextmanager
    async def _aside(self, replica: Replica, swap: SwapMode) -> AsyncIterator[None]:
        """Send no new request to a ready replica meanwhile, unless requests shall go on.

        With KEEP it steps aside by itself where there are probes, as late as it can.
        """
        if not replica.is_ready:
            yield
            return
        if swap is not SwapMode.KEEP:
            self._step_aside(replica)
        is_intact = False
        try:
            if swap is SwapMode.WAIT:
                await self._drained(replica, self._drain_timeout_s)
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

    def _step_aside(self, replica: Replica) -> None:
        if replica.is_ready:
            replica.state = ReplicaState.SYNCING
            self._tell(replica)

    async def _drained(self, replica: Replica, timeout_s: float) -> None:
        """Wait for the requests in flight; who takes too long goes on with the new weights."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        # The count is the fast lane's, which is not to set an event at every request's end.
        while replica.in_flight and loop.time() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        if replica.in_flight:
            logger.warning(
                "%s still has %d requests: they go on with other weights, and say so",
                replica.id,
                replica.in_flight,
            )

    async def _probes(self, info: PolicyInfo) -> Probes | None:
        try:
            return await asyncio.to_thread(self._store.probes, info)
        except BadCheckpoint as error:
            raise SwapFailed(str(error)) from error

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
