"""Every key of the config changes something that a container, its image or Modal gets."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from serve.deploy import images, plan, rates
from serve.deploy.config import ServingConfig, load
from tests.unit.serve.deploy.configs import BASE

SECRET = {"name": "mine", "required_keys": ["A_KEY"]}


def observed(config: ServingConfig) -> dict[str, Any]:
    """Everything that follows from a config, but for the config as a container gets it."""
    env = plan.container_env(config)
    env.pop("PALAESTRA_SERVE_CONFIG")
    return {
        "policy": plan.policy_server(config),
        "gateway": plan.gateway_server(config),
        "prefetch": plan.prefetch_function(config),
        "replica_up": plan.policy_settings(config, 8000, Path("/state")),
        "gateway_up": plan.gateway_settings(config, 8000, Path("/state")),
        "local_up": plan.local_settings(config),
        "policy_volumes": plan.policy_volumes(config),
        "gateway_volumes": plan.gateway_volumes(config),
        "prefetch_volumes": plan.prefetch_volumes(config),
        "gateway_secrets": [each.model_dump() for each in plan.gateway_secrets(config)],
        "other_secrets": [
            each.model_dump()
            for each in (*config.deploy.policy.secrets, *config.deploy.prefetch.secrets)
        ],
        "engine_image": images.engine_image(config),
        "light_image": images.light_image(config),
        "env": env,
        "app": config.deploy.app,
        "cost": rates.estimate(config),
    }


# key -> a value for it, and where it is seen; for those of `serve up`'s own sections, see below.
CASES: dict[str, tuple[object, str]] = {
    "model": ("Qwen/Other", "replica_up.model"),
    "revision": ("abc123", "replica_up.model"),
    "name": ("mine", "replica_up.name"),
    "routing": ("random", "gateway_up.routing"),
    "deploy.app": ("mine", "gateway_up.modal.app"),
    "deploy.snapshot": ("gpu", "policy.experimental_options"),
    "deploy.routing_region": ("eu-west", "policy.routing_region"),
    "deploy.env": ({"A": "b"}, "env.A"),
    "deploy.policy.gpu": (["L4:2"], "policy.gpu"),
    "deploy.policy.cpu": (7, "policy.cpu"),
    "deploy.policy.memory_mib": (1234, "policy.memory"),
    "deploy.policy.min_containers": (2, "policy.min_containers"),
    "deploy.policy.max_containers": (9, "policy.max_containers"),
    "deploy.policy.buffer_containers": (1, "policy.buffer_containers"),
    "deploy.policy.target_concurrency": (3.5, "policy.target_concurrency"),
    "deploy.policy.max_concurrency": (99, "policy.max_concurrency"),
    "deploy.policy.scaleup_window_s": (11, "policy.scaleup_window"),
    "deploy.policy.scaledown_window_s": (77, "policy.scaledown_window"),
    "deploy.policy.startup_timeout_s": (456, "policy.startup_timeout"),
    "deploy.policy.exit_grace_s": (17, "policy.exit_grace_period"),
    "deploy.policy.regions": (["us-east"], "policy.compute_region"),
    "deploy.policy.cloud": ("aws", "policy.cloud"),
    "deploy.policy.secrets": ([SECRET], "other_secrets"),
    "deploy.gateway.cpu": (7, "gateway.cpu"),
    "deploy.gateway.memory_mib": (1234, "gateway.memory"),
    "deploy.gateway.min_containers": (0, "gateway.min_containers"),
    "deploy.gateway.max_containers": (9, "gateway.max_containers"),
    "deploy.gateway.target_concurrency": (100, "gateway.target_concurrency"),
    "deploy.gateway.scaledown_window_s": (77, "gateway.scaledown_window"),
    "deploy.gateway.startup_timeout_s": (456, "gateway.startup_timeout"),
    "deploy.gateway.exit_grace_s": (17, "gateway.exit_grace_period"),
    "deploy.gateway.regions": (["us-east", "eu-west"], "gateway.compute_region"),
    "deploy.gateway.cloud": ("aws", "gateway.cloud"),
    "deploy.gateway.secrets": ([SECRET], "gateway_secrets"),
    "deploy.gateway.auth": ("edge", "gateway.unauthenticated"),
    "deploy.gateway.admin_secret": ("mine", "gateway_secrets"),
    "deploy.gateway.proxy_secret": ("mine", "gateway_secrets"),
    "deploy.gateway.mounts": (["train.service:modal"], "gateway_up.mounts"),
    "deploy.prefetch.cpu": (7, "prefetch.cpu"),
    "deploy.prefetch.memory_mib": (1234, "prefetch.memory"),
    "deploy.prefetch.timeout_s": (60, "prefetch.timeout"),
    "deploy.prefetch.secrets": ([SECRET], "other_secrets"),
    "deploy.volumes.root": ("/elsewhere", "policy_volumes"),
    "deploy.volumes.policies": ("mine", "policy_volumes"),
    "deploy.volumes.cache": ("mine", "prefetch_volumes"),
    "deploy.volumes.state": ("mine", "gateway_volumes"),
    "deploy.volumes.runs": ("mine", "gateway_volumes"),
    "deploy.image.cuda": ("13.0.0-devel-ubuntu24.04", "engine_image"),
    "deploy.image.extra_pip": (["rich==15.0.0"], "light_image"),
    "deploy.image.apt": (["git"], "engine_image"),
    "engine.max_model_len": (512, "replica_up.engine.max_model_len"),
    "engine.lora": (True, "replica_up.engine.lora"),
    "engine.max_loras": (9, "replica_up.engine.max_loras"),
    "engine.max_lora_rank": (64, "replica_up.engine.max_lora_rank"),
    "engine.swappable": (False, "replica_up.engine.swappable"),
    "engine.extra_args": (["--x"], "replica_up.engine.extra_args"),
    "engine.program": (["p", "{model}", "{port}"], "replica_up.engine.program"),
    "rules.aliases": ({"prod": "m@2"}, "gateway_up.rules.aliases"),
    "rules.canary": ({"m": {"version": 2, "share": 0.5}}, "gateway_up.rules.canary"),
    "rules.shadow": ({"m": {"version": 2, "share": 0.5}}, "gateway_up.rules.shadow"),
    "health.interval_s": (0.5, "gateway_up.health.interval_s"),
    "health.down_interval_s": (0.5, "gateway_up.health.down_interval_s"),
    "health.timeout_s": (0.5, "gateway_up.health.timeout_s"),
    "health.failures": (7, "gateway_up.health.failures"),
    "health.wedge_s": (7, "replica_up.health.wedge_s"),
    "front.max_body_bytes": (2048, "gateway_up.front.max_body_bytes"),
    "front.max_connections": (7, "gateway_up.front.max_connections"),
    "front.max_held": (7, "gateway_up.front.max_held"),
    "front.hold_s": (7, "gateway_up.front.hold_s"),
    "front.head_timeout_s": (7, "gateway_up.front.head_timeout_s"),
    "front.body_timeout_s": (7, "gateway_up.front.body_timeout_s"),
    "front.idle_timeout_s": (7, "gateway_up.front.idle_timeout_s"),
    "front.stall_timeout_s": (7, "gateway_up.front.stall_timeout_s"),
    "front.write_stall_s": (7, "gateway_up.front.write_stall_s"),
    "front.grace_s": (7, "gateway_up.front.grace_s"),
    "front.trusted_proxies": (["10.0.0.1"], "gateway_up.front.trusted_proxies"),
}
NEEDS: dict[str, dict[str, object]] = {
    "deploy.gateway.target_concurrency": {"deploy.gateway.auth": "edge"},
    "deploy.snapshot": {"deploy.policy.gpu": ["H100"]},
}


def leaves(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the keys of a config that are no sections."""
    found = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += leaves(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def at(values: Any, place: str) -> Any:
    for key in place.split("."):
        values = values.get(key) if isinstance(values, dict) else getattr(values, key)
    return values


def with_(settings: dict[str, object]) -> ServingConfig:
    sets = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load(BASE, sets=sets, environ={})


def test_every_key_has_its_case() -> None:
    assert sorted(CASES) == sorted(leaves(ServingConfig))


@pytest.mark.parametrize("key", CASES)
def test_a_key_changes_what_it_says(key: str) -> None:
    value, place = CASES[key]
    needs = NEEDS.get(key, {})
    before, after = with_(needs), with_({**needs, key: value})
    assert at(observed(before), place) != at(observed(after), place)
    assert before.digest != after.digest


@pytest.mark.parametrize(
    ("settings", "place", "expected"),
    [
        ({"deploy.policy.gpu": ["L4:2"]}, "replica_up.engine.extra_args", "--tensor-parallel-size"),
        (
            {"deploy.policy.gpu": ["L4"], "deploy.snapshot": "gpu"},
            "replica_up.engine.extra_args",
            "--enable-sleep-mode",
        ),
        ({"deploy.policy.gpu": []}, "engine_image.apt", "libnuma1"),
        ({"deploy.gateway.mounts": ["train.service:modal"]}, "light_image.sources", "train"),
    ],
)
def test_what_follows_from_several_keys(
    settings: dict[str, object], place: str, expected: str
) -> None:
    assert expected in at(observed(with_(settings)), place)
    assert expected not in at(observed(with_({})), place)


def test_the_users_own_arguments_come_last_so_that_they_win() -> None:
    config = with_({"deploy.policy.gpu": ["L4:2"], "engine.extra_args": ["--mine"]})
    found = plan.policy_settings(config, 8000, Path("/state"))["engine"]["extra_args"]
    assert found == ["--tensor-parallel-size", "2", "--mine"]
