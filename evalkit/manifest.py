"""What a run's manifest says: what was asked, of whom, with what versions of what."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import orjson

from envs import TextEnv, digest, env_id
from evalkit.record.references import Reference

if TYPE_CHECKING:  # those who only read a manifest need nothing that connects
    from evalkit.config import RunConfig
    from evalkit.connect import Connected
    from evalkit.play.rollout import Arm


def describe(
    config: RunConfig,
    env: TextEnv,
    run_id: str,
    arms: Sequence[Arm],
    connected: Mapping[str, Connected],
    own: str | None,
) -> dict[str, Any]:
    """Return the manifest: what is asked, of whom, with what versions.

    `own` names the class of a policy that is a Python object of the caller's.
    """
    return {
        "run_id": run_id,
        "config": config.model_dump(mode="json"),
        "config_digest": config.digest(digest(env)),
        "env": {
            "id": env_id(env),
            "version": env.version,
            "digest": digest(env),
            "params": env.params,
        },
        "policy": own,
        "arms": [_describe_arm(arm, config, connected, env) for arm in arms],
        "evalkit_version": package_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_sha": _git_sha(),
        "started_at": now(),
        "finished_at": None,
    }


def _describe_arm(
    arm: Arm, config: RunConfig, connected: Mapping[str, Connected], env: TextEnv
) -> dict[str, Any]:
    label, found = next(
        (label, found) for label, found in connected.items() if found.policy is arm.policy
    )
    return {
        "name": arm.name,
        "strategy": str(arm.strategy),
        "guided": arm.guided,
        "host": found.host,
        **found.described(),
        "usd_per_mtok": config.price_of(label),
        "request": _request(arm, found.model, config, env),
    }


def _request(arm: Arm, model: str, config: RunConfig, env: TextEnv) -> dict[str, Any]:
    """Return the fields that every request of an arm carries beside messages and seed."""
    from evalkit.connect import sampling  # noqa: PLC0415

    fields = {"model": model, **sampling(config).fields()}
    if arm.guided:
        env.reset(seed=config.seeds[0])
        fields["structured_outputs"] = {"regex": arm.strategy.answer_pattern(env)}
    return fields


def identities(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, for every arm, the columns of summary.csv that are known before it plays."""
    config, env = manifest["config"], manifest["env"]
    return {
        arm["name"]: {
            "format": "summary/2",
            "run_id": manifest["run_id"],
            "arm": arm["name"],
            "model": arm["model"],
            "base_url_host": arm["host"],
            "model_fingerprint": arm["server_version"],
            "env": env["id"],
            "env_version": env["version"],
            "env_hash": env["digest"],
            "env_args": orjson.dumps(env["params"]).decode(),
            "strategy": arm["strategy"],
            "guided": arm["guided"],
            "n_seeds": manifest.get("n_seeds_judged", len(config["seeds"])),
            "k": config["k"],
            "usd_per_mtok_in": (arm.get("usd_per_mtok") or (None, None))[0],
            "usd_per_mtok_out": (arm.get("usd_per_mtok") or (None, None))[1],
            "run_seed": config["run_seed"],
            "temperature": config["temperature"],
            "max_tokens": config["max_tokens"],
            "git_sha": manifest["git_sha"],
            "evalkit_version": manifest["evalkit_version"],
        }
        for arm in manifest["arms"]
    }


def fixed_margin(manifest: Mapping[str, Any]) -> float | None:
    """Return the margin of equivalence of a run of fixed size; one that stops early judges it so.

    Two one-sided tests at a stop that the data chose would not keep their level.
    """
    config = manifest["config"]
    return None if config.get("stop") else config.get("margin")


def package_version() -> str:
    """Return the version of the package that is installed."""
    try:
        return version("palaestra")
    except PackageNotFoundError:
        return "0+unknown"


def _git_sha() -> str:
    """Return the commit of the code that is evaluated from, "" outside a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def keep_references(references: Mapping[str, Reference]) -> dict[str, Any]:
    """Return what a finished run's manifest keeps of random and oracle."""
    return {"references": [asdict(reference) for reference in references.values()]}


def kept_references(manifest: Mapping[str, Any]) -> dict[str, Reference]:
    """Read what `keep_references` kept."""
    return {row["policy"]: Reference(**row) for row in manifest["references"]}


def now() -> str:
    """Return the time of day, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
