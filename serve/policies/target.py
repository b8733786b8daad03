"""What a replica should hold, as the store says: one full version, and adapters over it.

Reads the store and changes nothing. Knows no replica and no engine.
"""

from collections.abc import Collection
from dataclasses import dataclass

from serve.policies.manifest import PolicyInfo
from serve.policies.store import PolicyStore
from serve.wire import PolicyKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one policy's replicas should converge to."""

    latest: PolicyInfo
    base: PolicyInfo
    """The full version that `latest` is, or sits on."""
    adapters: tuple[PolicyInfo, ...]
    """The LoRA versions over that base to be served besides, oldest first, `latest` among them."""


def target_of(
    store: PolicyStore, name: str, version: int, most_adapters: int, pinned: Collection[int]
) -> Target:
    """Return what to serve where `version` is the latest: of adapters the newest, and pinned."""
    latest = store.info(name, version)
    over = [
        info
        for info in store.versions(name)
        if info.kind is PolicyKind.LORA and info.base == latest.base and info.path is not None
    ]
    newest = {info.version for info in over[-most_adapters:]} if most_adapters else set()
    wanted = newest | {version} | set(pinned)
    return Target(
        latest=latest,
        base=store.info(name, latest.base),
        adapters=tuple(info for info in over if info.version in wanted),
    )
