"""What can be seen of the gateway: pool, policies, keys, rates. Only reads, and knows no HTTP.

What lies on a disk is read in a thread and kept for a moment, so that many who look cost no more
than one; while the disk cannot be read, the last known is shown.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Generic, TypeVar

from serve.accounts.limits import Account
from serve.accounts.records import AuditEntry, KeyInfo
from serve.errors import StateError
from serve.front.control.bodies import (
    AuditRow,
    DemandAnswer,
    KeyAnswer,
    ModelCard,
    Overview,
    PolicyAnswer,
    PoolAnswer,
    ProofAnswer,
    ReplicaAnswer,
    ServedPolicy,
    ServingAnswer,
    VersionAnswer,
)
from serve.front.control.services import Services
from serve.front.sight.exposition import engine_metrics
from serve.policies.manifest import PolicyInfo
from serve.pool.replicas import Replica
from serve.wire import PolicyRef, Scope

logger = logging.getLogger(__name__)

_KEEP_S = 1.0
_MAX_KEYS_SHOWN = 100
_MAX_AUDIT_SHOWN = 30

T = TypeVar("T")
Published = Mapping[str, tuple[int | None, Sequence[PolicyInfo]]]
"""Policy name -> what the bare name means, and all versions, oldest first."""


class Sight:
    """Answers for those who look, of one gateway."""

    def __init__(self, services: Services, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._services = services
        self._clock = clock
        self._started_s = clock()
        self._published = _Kept(self._read_policies, clock)
        self._keys = _Kept(services.store.keys, clock)
        self._audit = _Kept(lambda: services.store.audit_log(_MAX_AUDIT_SHOWN), clock)

    def forget(self) -> None:
        """Read everything anew: something was changed."""
        for kept in (self._published, self._keys, self._audit):
            kept.forget()

    def pool(self) -> PoolAnswer:
        """Return all replicas as they are now."""
        pool = self._services.pool
        demand = pool.demand()
        return PoolAnswer(
            desired=self._services.desired(),
            replicas=[_replica(replica) for replica in pool.replicas],
            demand=DemandAnswer(
                in_flight=demand.in_flight,
                held=demand.held,
                oldest_held_s=demand.oldest_held_s,
                idle_s=demand.idle_s,
            ),
        )

    def serving(self) -> ServingAnswer:
        """Return what the ready replicas serve, without a look at the disk."""
        replicas = [replica for replica in self._services.pool.replicas if replica.is_ready]
        live = _live_versions(replicas)
        current = {name: max(replica.current.get(name, 0) for replica in replicas) for name in live}
        proofs = [proof for replica in replicas if (proof := _proof(replica)) is not None]
        return ServingAnswer(
            ready=any(current.values()),
            proof=max(proofs, key=lambda proof: proof.difference, default=None),
            policies={
                name: ServedPolicy(
                    current=current[name],
                    versions=sorted(versions),
                    max_model_len=self._services.models.get(name, {}).get("max_model_len"),
                )
                for name, versions in live.items()
                if current[name]
            },
        )

    async def policies(self) -> list[PolicyAnswer]:
        """Return all policies, with where each version is live now."""
        published = await self._published.get()
        return [
            PolicyAnswer(
                name=name, latest=latest, versions=[self.version(info) for info in versions]
            )
            for name, (latest, versions) in published.items()
        ]

    def version(self, info: PolicyInfo) -> VersionAnswer:
        """Return one version, with where it is live now."""
        return VersionAnswer(
            name=info.name,
            version=info.version,
            kind=info.kind,
            created=info.created.timestamp(),
            parent=info.parent,
            digest=info.digest,
            size_bytes=info.size_bytes,
            metrics=info.metrics,
            path=None if info.path is None else str(info.path),
            live_on=[
                replica.id
                for replica in self._services.pool.replicas
                if replica.is_ready and info.version in replica.served.get(info.name, ())
            ],
        )

    async def keys(self) -> list[KeyAnswer]:
        """Return all keys with their live counts."""
        accounts = self._services.auth.accounts
        return [key_answer(info, accounts.get(info.id)) for info in await self._keys.get()]

    async def models(self) -> list[ModelCard]:
        """Return a card for each name that a request may ask for."""
        published = await self._published.get()
        live = _live_versions(self._services.pool.replicas)
        cards = []
        for name in sorted({*published, *live}):
            latest, versions = published.get(name, (None, ()))
            infos = {info.version: info for info in versions}
            current = latest or max(live.get(name, ()), default=None)
            cards.append(self._card(name, name, current, infos))
            cards += [
                self._card(f"{name}@{version}", name, version, infos)
                for version in sorted(live.get(name, ()))
            ]
        targets = {card.id: card for card in cards}
        for alias, target in sorted(self._services.aliases().items()):
            if alias not in targets:
                cards.append(_alias_card(alias, target, targets))
        return cards

    async def overview(self, actor: str) -> Overview:
        """Return everything that the dashboard shows."""
        services = self._services
        meters = services.meters
        window = meters.window()
        pool = self.pool()
        keys = sorted(await self.keys(), key=_liveliest)
        return Overview(
            now_s=time.time(),
            uptime_s=self._clock() - self._started_s,
            version=services.version,
            actor=actor,
            is_open=services.auth.open,
            load={
                "in_flight": pool.demand.in_flight,
                "held": pool.demand.held,
                "held_max": meters.held_max,
                "connections": meters.connections,
                "loop_lag_s": meters.loop_lag_s,
            },
            rates=[asdict(rate) for rate in window.rates],
            latency=asdict(window.latency),
            first_token=asdict(window.first_token),
            totals=meters.totals(),
            refused=dict(meters.refusals),
            pool=pool,
            policies=await self.policies(),
            aliases=dict(services.aliases()),
            version_requests={
                f"{name}@{version}": traffic.requests
                for (name, version), traffic in meters.versions.items()
            },
            keys=keys[:_MAX_KEYS_SHOWN],
            keys_total=len(keys),
            audit=[audit_row(entry) for entry in await self._audit.get()],
        )

    def _read_policies(self) -> Published:
        policies = self._services.policies
        return {
            name: (policies.latest(name), policies.versions(name)) for name in policies.policies()
        }

    def _card(
        self, id_: str, name: str, version: int | None, infos: Mapping[int, PolicyInfo]
    ) -> ModelCard:
        engine_card = self._services.models.get(name, {})
        info = infos.get(version or 0)
        return ModelCard(
            id=id_,
            created=int(
                engine_card.get("created", 0) if info is None else info.created.timestamp()
            ),
            root=name,
            parent=None
            if info is None or info.parent is None
            else str(PolicyRef(name, info.parent)),
            max_model_len=engine_card.get("max_model_len"),
            policy_version=version,
        )


class _Kept(Generic[T]):
    """A reading that stays good for a moment. One reader at a time, in a thread."""

    def __init__(self, read: Callable[[], T], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._lock = asyncio.Lock()
        self._value: T | None = None
        self._until_s = float("-inf")

    async def get(self) -> T:
        """Return it, or raise StateError if it could never be read."""
        async with self._lock:
            if self._value is None or self._clock() >= self._until_s:
                try:
                    self._value = await asyncio.to_thread(self._read)
                except StateError:
                    if self._value is None:
                        raise
                    logger.warning("showing what was read before", exc_info=True)
                self._until_s = self._clock() + _KEEP_S
            return self._value

    def forget(self) -> None:
        """Read anew the next time."""
        self._until_s = float("-inf")


def key_answer(info: KeyInfo, account: Account | None) -> KeyAnswer:
    """Return a key with its live counts, of which a revoked one has none."""
    return KeyAnswer(
        id=info.id,
        name=info.name,
        scopes=[scope for scope in Scope if scope in info.scopes],
        **asdict(info.limits),
        created_s=info.created_s,
        revoked_s=info.revoked_s,
        last_used_s=info.last_used_s,
        in_flight=0 if account is None else account.in_flight,
        requests=0 if account is None else account.requests,
        used_tokens=None if account is None else account.used_tokens,
    )


def audit_row(entry: AuditEntry) -> AuditRow:
    """Return an entry of the audit log."""
    return AuditRow(**asdict(entry))


def _replica(replica: Replica) -> ReplicaAnswer:
    return ReplicaAnswer(
        id=replica.id,
        url=replica.base_url,
        state=replica.state,
        reason=replica.reason,
        in_flight=replica.in_flight,
        requests=replica.requests,
        errors=replica.errors,
        sessions=replica.sessions,
        served={name: sorted(versions) for name, versions in replica.served.items()},
        current=dict(replica.current),
        proof=_proof(replica),
        metrics=engine_metrics(replica),
    )


def _proof(replica: Replica) -> ProofAnswer | None:
    if replica.proof is None:
        return None
    return ProofAnswer(label=replica.proof[0], difference=replica.proof[1])


def _live_versions(replicas: Sequence[Replica]) -> dict[str, set[int]]:
    live: dict[str, set[int]] = {}
    for replica in replicas:
        if replica.is_ready:
            for name, versions in replica.served.items():
                live.setdefault(name, set()).update(versions)
    return live


def _alias_card(alias: str, target: str, targets: Mapping[str, ModelCard]) -> ModelCard:
    found = targets.get(target)
    if found is None:
        return ModelCard(id=alias, created=0, root=target)
    return found.model_copy(update={"id": alias, "root": target})


def _liveliest(key: KeyAnswer) -> tuple[bool, int, int]:
    return key.revoked_s is not None, -key.in_flight, -(key.used_tokens or 0)
