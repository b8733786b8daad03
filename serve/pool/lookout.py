"""Looks at replicas that are gateways themselves: which versions of which policies they serve.

Nothing here changes weights: an upstream gateway follows the store by itself. One whose only engine
changes its weights, or is lost, takes no new requests meanwhile; those that it has go on.
"""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from serve.errors import EngineNotReady
from serve.pool.base import Pool
from serve.pool.replicas import Replica, ReplicaState, encoded

logger = logging.getLogger(__name__)

SERVICE = "palaestra-gateway"
"""What a gateway's /health calls itself."""

_AGAIN_S = 0.25
_HURRY_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a gateway said of itself."""

    ready: bool
    """Whether one of its engines takes requests."""
    served: dict[str, dict[int, bytes]]
    current: dict[str, int]
    lengths: dict[str, int | None]
    proof: tuple[str, float] | None
    """What its engine last said to a version's probes."""


class Lookout:
    """Looks at the gateways in a pool, each `every_s`, from entering to leaving."""

    def __init__(
        self,
        pool: Pool,
        *,
        every_s: float = 1.0,
        timeout_s: float = 5.0,
        ready_within_s: float = 20.0,
        tls: ssl.SSLContext | None = None,
        cards: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """Put what they say of a policy's length into `cards`."""
        self.names: set[str] = set()
        """The policies that were there when last a gateway was ready."""
        self._pool = pool
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._ready_within_s = ready_within_s
        self._tls = tls
        self._cards = {} if cards is None else cards
        self._aside: set[Replica] = set()
        """Those that were ready here and are not there."""
        self._before: dict[Replica, dict[str, dict[int, bytes]]] = {}
        """What each served before what it serves: it may go back to that."""
        self._hurry_until_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def hurry(self) -> None:
        """Look even at a pool that is quiet, for a while: something was published."""
        self._hurry_until_s = asyncio.get_running_loop().time() + _HURRY_S

    def in_use(self, name: str) -> dict[int, str]:
        """Return the versions of a policy that must not be pruned, and why; from any thread."""
        used: dict[int, str] = {}
        for replica in list(self._pool.replicas):
            if replica.labels:
                versions = {
                    *replica.served.get(name, ()),
                    *self._before.get(replica, {}).get(name, ()),
                }
                used |= dict.fromkeys(versions, f"{replica.id} serves it")
        return used

    async def recognises(self, replica: Replica) -> bool:
        """Whether a gateway answers there: an engine's /health says nothing, if it has one.

        Raises EngineNotReady if nobody answers.
        """
        answer = await self._ask(replica, "/health")
        if answer.status_code >= 500:
            raise EngineNotReady(f"{answer.url} was answered with {answer.status_code}")
        try:
            said = answer.json()
        except ValueError:
            return False
        return isinstance(said, dict) and said.get("service") == SERVICE

    async def prepare(self, replica: Replica) -> None:
        """Return when one of its engines takes requests, and say what it serves.

        Raises EngineNotReady if it does not answer, or not in time.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._ready_within_s
        view = await self._view(replica)
        while not view.ready:
            if loop.time() > deadline_s:
                words = f"no engine became ready there within {self._ready_within_s:g} s"
                raise EngineNotReady(words)
            await asyncio.sleep(_AGAIN_S)
            view = await self._view(replica)
        self._take(replica, view)

    async def _watch(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._every_s)
            replicas = [
                replica
                for replica in self._pool.replicas
                if replica.labels and (replica.is_ready or replica in self._aside)
            ]
            self._before = {
                replica: before
                for replica, before in self._before.items()
                if replica in self._pool.replicas
            }
            if not self._pool.is_quiet or loop.time() < self._hurry_until_s:
                await asyncio.gather(*map(self._look, replicas))

    async def _look(self, replica: Replica) -> None:
        try:
            view = await self._view(replica)
        except EngineNotReady as error:
            if replica in self._aside:
                # Probes take out those that are ready; nobody but us brings this one back.
                self._aside.discard(replica)
                self._pool.failed(replica, str(error))
            return
        if view.ready:
            is_back = replica in self._aside and replica.state is ReplicaState.SYNCING
            self._aside.discard(replica)
            is_new = self._take(replica, view)
            if is_back:
                replica.state, replica.reason = ReplicaState.READY, ""
            if is_back or (is_new and replica.is_ready):
                self._pool.tell(replica)
        elif replica.is_ready:
            self._aside.add(replica)
            replica.state = ReplicaState.SYNCING
            replica.reason = "no engine is ready there now, or its weights change"
            self._pool.tell(replica)

    def _take(self, replica: Replica, view: View) -> bool:
        """Let a replica say what it serves; return whether that is new."""
        self.names = set(view.current)
        for name, length in view.lengths.items():
            self._cards.setdefault(name, {})["max_model_len"] = length
        replica.proof = view.proof
        if (replica.served, replica.current) == (view.served, view.current):
            return False
        self._before[replica] = replica.served
        replica.served, replica.current = view.served, view.current
        return True

    async def _view(self, replica: Replica) -> View:
        answer = await self._ask(replica, "/serving")
        if not answer.is_success:
            raise EngineNotReady(f"{answer.url} was answered with {answer.status_code}")
        try:
            return _read(answer.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineNotReady(f"{replica.base_url}/serving is no gateway's") from error

    async def _ask(self, replica: Replica, path: str) -> httpx.Response:
        url = f"{replica.base_url}{path}"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._client.get(url, headers=list(replica.headers))
        except (httpx.HTTPError, TimeoutError) as error:
            raise EngineNotReady(f"{url}: {str(error) or type(error).__name__}") from error

    async def __aenter__(self) -> Self:
        # Plain HTTP needs no certificates: reading them would keep the loop for 60 ms.
        self._client = httpx.AsyncClient(
            verify=self._tls or False, trust_env=False, timeout=self._timeout_s
        )
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
        await self._client.aclose()


def _read(said: Mapping[str, Any]) -> View:
    policies: Mapping[str, Mapping[str, Any]] = said["policies"]
    proof = said.get("proof")
    return View(
        ready=bool(said["ready"]),
        served={
            name: {int(version): encoded(f"{name}@{version}") for version in policy["versions"]}
            for name, policy in policies.items()
        },
        current={name: int(policy["current"]) for name, policy in policies.items()},
        lengths={name: policy.get("max_model_len") for name, policy in policies.items()},
        proof=None if proof is None else (str(proof["label"]), float(proof["difference"])),
    )
