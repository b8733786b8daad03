"""What a deployment defines, as plain values: the options of its containers and what they run.

Pure. `serve.modal_app` hands these to Modal, and decides nothing.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from serve.deploy.config import VARIABLE, ServingConfig
from serve.deploy.sections import ContainerConfig, GatewayAuth, SecretRef, Snapshot

PUBLIC_PORT = 8000
POLICY_SERVER = "Policy"
GATEWAY_SERVER = "Gateway"
ADMIN_KEY = "PALAESTRA_ADMIN_KEY"
PROXY_TOKEN = "PALAESTRA_PROXY_TOKEN"  # noqa: S105  # the variable's name

_REPLICA_HOLD_S = 60.0
"""A replica that cannot answer says so to the gateway, which knows others and holds as well."""
_GRACE_S = 20.0
"""After SIGTERM a container has 30 s; the requests in it were drained before."""


def policy_server(config: ServingConfig) -> dict[str, Any]:
    """Return the options of the replicas' server."""
    policy, deploy = config.deploy.policy, config.deploy
    options = {
        **_container(policy),
        "gpu": list(policy.gpu) or None,
        "buffer_containers": policy.buffer_containers,
        "target_concurrency": policy.target_concurrency,
        "max_concurrency": policy.max_concurrency,
        "scaleup_window": policy.scaleup_window_s,
        "routing_region": deploy.routing_region,
        "enable_memory_snapshot": deploy.snapshot is not Snapshot.OFF,
    }
    if deploy.snapshot is Snapshot.GPU:
        options["experimental_options"] = {"enable_gpu_snapshot": True}
    return options


def gateway_server(config: ServingConfig) -> dict[str, Any]:
    """Return the options of the gateway's server."""
    gateway = config.deploy.gateway
    return {
        **_container(gateway),
        "target_concurrency": gateway.target_concurrency,
        "routing_region": config.deploy.routing_region,
        "unauthenticated": gateway.auth is GatewayAuth.KEYS,
    }


def prefetch_function(config: ServingConfig) -> dict[str, Any]:
    """Return the options of the function that brings the model."""
    prefetch = config.deploy.prefetch
    return {"cpu": prefetch.cpu, "memory": prefetch.memory_mib, "timeout": prefetch.timeout_s}


def policy_settings(config: ServingConfig, port: int, state: Path) -> dict[str, Any]:
    """Return what `serve up` is told in a replica: one engine, and versions that it only reads."""
    return {
        "model": str(config.deploy.volumes.root / "cache" / config.folder),
        "name": config.policy_name,
        "replicas": 1,
        "engine": {
            **config.engine.model_dump(mode="json"),
            "extra_args": [*_for_engine(config), *config.engine.extra_args],
        },
        "policies_read_only": True,
        # Only Modal's edge reaches it, and asks for a proxy token.
        "edge_auth": True,
        **_shared(config, port, state, hold_s=min(config.front.hold_s, _REPLICA_HOLD_S)),
    }


def gateway_settings(config: ServingConfig, port: int, state: Path) -> dict[str, Any]:
    """Return what `serve up` is told in the gateway: its replicas are the other server's."""
    deploy = config.deploy
    return {
        "modal": {"app": deploy.app, "server": POLICY_SERVER},
        "remote": {"key_env": PROXY_TOKEN if deploy.gateway.proxy_secret else None},
        "volume": {"name": deploy.volumes.policies},
        "edge_auth": deploy.gateway.auth is GatewayAuth.EDGE,
        "mounts": list(deploy.gateway.mounts),
        "routing": config.routing.value,
        "rules": config.rules.model_dump(mode="json"),
        **_shared(config, port, state, hold_s=config.front.hold_s),
    }


def local_settings(config: ServingConfig) -> dict[str, Any]:
    """Return what `serve up` is told on this machine: the same policy, in engines of its own."""
    return {
        "model": config.model,
        "name": config.name,
        "routing": config.routing.value,
        **{
            section: getattr(config, section).model_dump(mode="json", exclude_unset=True)
            for section in ("engine", "front", "health", "rules")
        },
    }


def policy_volumes(config: ServingConfig) -> dict[str, tuple[str, bool]]:
    """Return the volumes of a replica: path -> name, and whether it is read-only."""
    volumes = config.deploy.volumes
    return {
        str(volumes.root / "policies"): (volumes.policies, True),
        str(volumes.root / "cache"): (volumes.cache, False),
    }


def gateway_volumes(config: ServingConfig) -> dict[str, tuple[str, bool]]:
    """Return the volumes of the gateway, which publishes and keeps the accounts."""
    volumes = config.deploy.volumes
    found = {
        str(volumes.root / "policies"): (volumes.policies, False),
        # The first version lies there, and a LoRA is compared with it when it is published.
        str(volumes.root / "cache"): (volumes.cache, True),
        str(volumes.root / "state"): (volumes.state, False),
    }
    if volumes.runs is not None:
        found[str(volumes.root / "runs")] = (volumes.runs, True)
    return found


def prefetch_volumes(config: ServingConfig) -> dict[str, tuple[str, bool]]:
    """Return the volumes of the function that brings the model and registers it."""
    volumes = config.deploy.volumes
    return {
        str(volumes.root / "policies"): (volumes.policies, False),
        str(volumes.root / "cache"): (volumes.cache, False),
    }


def gateway_secrets(config: ServingConfig) -> tuple[SecretRef, ...]:
    """Return the gateway's secrets: its own, and those that it is given."""
    gateway = config.deploy.gateway
    found = list(gateway.secrets)
    if gateway.auth is GatewayAuth.KEYS:
        found.append(SecretRef(name=gateway.admin_secret, required_keys=(ADMIN_KEY,)))
    if gateway.proxy_secret is not None:
        found.append(SecretRef(name=gateway.proxy_secret, required_keys=(PROXY_TOKEN,)))
    return tuple(found)


def container_env(config: ServingConfig) -> dict[str, str]:
    """Return what all containers find in their environment."""
    cache = config.deploy.volumes.root / "cache"
    # A snapshot with the compiler's helper processes in it does not come back.
    quiet = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return {
        **(quiet if config.deploy.snapshot is Snapshot.GPU else {}),
        "HF_HOME": str(cache / "huggingface"),
        "HF_XET_HIGH_PERFORMANCE": "1",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "PYTHONUNBUFFERED": "1",
        **config.deploy.env,
        VARIABLE: config.to_json(),
    }


def volume_path(config: ServingConfig) -> PurePosixPath:
    """Return the folder of the model as containers see it."""
    return config.deploy.volumes.root / "cache" / config.folder


def _container(section: ContainerConfig) -> dict[str, Any]:
    return {
        "cpu": section.cpu,
        "memory": section.memory_mib,
        "min_containers": section.min_containers,
        "max_containers": section.max_containers,
        "startup_timeout": section.startup_timeout_s,
        "exit_grace_period": section.exit_grace_s,
        "scaledown_window": section.scaledown_window_s,
        "compute_region": list(section.regions) or None,
        "cloud": section.cloud,
        "port": PUBLIC_PORT,
    }


def _for_engine(config: ServingConfig) -> list[str]:
    """Return what vLLM is told because of where it runs; the config's own arguments follow."""
    if config.engine.program:
        return []
    said = []
    if config.deploy.policy.gpus_each > 1:
        said += ["--tensor-parallel-size", str(config.deploy.policy.gpus_each)]
    if config.deploy.snapshot is Snapshot.GPU:
        said.append("--enable-sleep-mode")
    return said


def _shared(config: ServingConfig, port: int, state: Path, *, hold_s: float) -> dict[str, Any]:
    front = config.front.model_dump(mode="json")
    return {
        # Modal's edge comes from outside the container.
        "host": "0.0.0.0",  # noqa: S104
        "port": port,
        "state": str(state),
        "edge_tls": True,
        "policies": str(config.deploy.volumes.root / "policies"),
        "front": {
            **front,
            "hold_s": hold_s,
            "grace_s": min(config.front.grace_s, _GRACE_S),
        },
        "health": config.health.model_dump(mode="json"),
    }
