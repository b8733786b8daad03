"""The two policies that every result stands beside: random play and perfect play, on its seeds.

Both are deterministic, so what they score is computed once per env digest and set of seeds, and
kept in the user's cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from envs import TextEnv, digest
from evalkit.errors import BadConfig
from evalkit.play.baselines import OraclePolicy, RandomPolicy
from evalkit.play.policy import Policy
from evalkit.play.rollout import Arm, play
from evalkit.play.strategies import NoHistory
from evalkit.record.references import Reference, load_references, save_references
from evalkit.record.trajectory import Key

RULES = 1
"""Raised when random or oracle play another way, so that what was kept counts no more."""


async def references(
    make_env: Callable[[], TextEnv], seeds: Sequence[int], *, cache: Path | None = None
) -> dict[str, Reference]:
    """Return the references by name: "random" and "oracle".

    Raises:
        BadConfig: the env broke under one of them on every seed.

    """
    file = _file(digest(make_env()), seeds, cache)
    known = load_references(file)
    if known is None:
        policies: dict[str, Policy] = {"random": RandomPolicy(), "oracle": OraclePolicy()}
        known = {name: await _measure(name, p, make_env, seeds) for name, p in policies.items()}
        with suppress(OSError):  # a cache that cannot be written costs time, not results
            save_references(file, known)
    return known


def kept(
    env_digest: str, seeds: Sequence[int], *, cache: Path | None = None
) -> dict[str, Reference] | None:
    """Return the references that were computed before for an env of this digest, if they were.

    For who looks at a run and does not play: no env is made.
    """
    return load_references(_file(env_digest, seeds, cache)) if env_digest.isalnum() else None


def _file(env_digest: str, seeds: Sequence[int], cache: Path | None) -> Path:
    folder = (cache or user_cache_path("palaestra")) / "references"
    seed_digest = hashlib.sha256(repr(sorted(seeds)).encode()).hexdigest()[:16]
    return folder / f"{env_digest}-{seed_digest}-{RULES}.json"


async def _measure(
    name: str, policy: Policy, make_env: Callable[[], TextEnv], seeds: Sequence[int]
) -> Reference:
    arm = Arm(name=name, policy=policy, strategy=NoHistory(), make_env=make_env, run_id="reference")
    played = [await play(arm, Key(env_seed=seed, repetition=0, arm=name)) for seed in seeds]
    scored = [trajectory for trajectory in played if trajectory.scored]
    if not scored:
        raise BadConfig(f"the env broke under the {name} policy: {played[0].failure_message}")
    return Reference(
        policy=name,
        n_episodes=len(scored),
        successes=sum(trajectory.success for trajectory in scored),
        return_mean=sum(trajectory.return_ for trajectory in scored) / len(scored),
        turns_mean=sum(len(trajectory.turns) for trajectory in scored) / len(scored),
    )
