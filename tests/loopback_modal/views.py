"""What was deployed and what runs, as frozen records for tests to compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modal_proto import api_pb2 as pb

from tests.loopback_modal import images
from tests.loopback_modal.inputs import FunctionCall, Input
from tests.loopback_modal.plane import App, Container, Function, Plane


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView:
    """A volume where a function sees it."""

    name: str
    read_only: bool
    version: int
    sub_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionView:
    """One function, class service or server as it was deployed; unset numbers are 0.

    `image` is the recipe's Dockerfile lines through the base images, `env` what its ENV lines set,
    `mounts` the paths of the files shipped beside the image. Times are seconds.
    """

    id: str
    name: str
    module: str
    gpus: list[str]
    cpu: float
    memory_mib: int
    min_containers: int
    max_containers: int
    buffer_containers: int
    scaleup_window: int
    scaledown_window: int
    target_concurrency: float
    max_concurrency: int
    volumes: dict[str, VolumeView]
    secrets: list[str]
    secret_env: dict[str, str]
    required_keys: dict[str, list[str]]
    image: list[str]
    env: dict[str, str]
    mounts: list[str]
    timeout_s: int
    startup_timeout_s: int
    retries: int
    retry_delay_s: float
    retry_backoff: float
    snapshot: bool
    gpu_snapshot: bool
    regions: list[str]
    nonpreemptible: bool
    cluster_size: int
    rdma: bool
    schedule: str
    single_use_containers: bool
    block_network: bool
    experimental_options: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerView(FunctionView):
    """A class under `@app.server`."""

    port: int
    url: str
    unauthenticated: bool
    exit_grace_period_s: int
    routing_region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppView:
    """One app. `servers` and `functions` are by tag (`Policy`, `train`, `Worker.*`)."""

    id: str
    name: str
    state: str
    version: int
    tags: dict[str, str]
    servers: dict[str, ServerView]
    functions: dict[str, FunctionView]
    classes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """One container as it is now."""

    id: str
    app: str
    function: str
    state: str
    pid: int
    port: int
    in_flight: int
    exit_code: int | None
    failure: str
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """One function call and the hardware that it asked for."""

    id: str
    app: str
    function: str
    gpus: list[str]
    timeout_s: int
    memory_mib: int
    cpu: float
    retries: int
    inputs: list[str]
    statuses: list[str]
    containers: list[list[str]]


def app_view(plane: Plane, app: App) -> AppView:
    """The app with everything it published."""
    published = {tag: plane.functions[name] for tag, name in app.function_ids.items()}
    return AppView(
        id=app.id,
        name=app.name,
        state=pb.AppState.Name(app.state).removeprefix("APP_STATE_").lower(),
        version=app.version,
        tags=dict(app.tags),
        servers={tag: server_view(plane, one) for tag, one in published.items() if one.is_server},
        functions={
            tag: function_view(plane, one) for tag, one in published.items() if not one.is_server
        },
        classes=sorted(app.class_ids),
    )


def function_view(plane: Plane, function: Function) -> FunctionView:
    """The function as it was deployed, or as a variant changed it."""
    return FunctionView(**_common(plane, function))


def server_view(plane: Plane, function: Function) -> ServerView:
    """The server as it was deployed."""
    http = function.definition.http_config
    fields = _common(plane, function) | {
        "timeout_s": 0,
        "startup_timeout_s": http.startup_timeout,
        "regions": list(function.definition.scheduler_placement.regions),
    }
    return ServerView(
        **fields,
        port=http.port,
        url=function.url,
        unauthenticated=http.unauthenticated,
        exit_grace_period_s=http.exit_grace_period,
        routing_region=http.proxy_regions[0] if http.proxy_regions else "",
    )


def container_view(plane: Plane, container: Container) -> ContainerView:
    """The container as it is now."""
    return ContainerView(
        id=container.id,
        app=plane.apps[container.function.app_id].name,
        function=container.function.name,
        state=str(container.state),
        pid=container.process.pid,
        port=container.port,
        in_flight=container.in_flight or len(container.inputs),
        exit_code=container.exit_code,
        failure=container.failure.exception if container.failure else "",
        folder=str(container.folder),
    )


def _common(plane: Plane, function: Function) -> dict[str, Any]:
    definition, settings = function.definition, function.settings
    lines = images.recipe(plane, definition.image_id)
    secrets = [plane.secrets[name] for name in definition.secret_ids if name in plane.secrets]
    return _sizes(function) | {
        "id": function.id,
        "name": function.name,
        "module": definition.module_name,
        "volumes": {mount.mount_path: _volume(plane, mount) for mount in definition.volume_mounts},
        "secrets": [secret.name for secret in secrets if secret.name],
        "secret_env": {
            name: value
            for secret in secrets
            if not secret.name
            for name, value in secret.values.items()
        },
        "required_keys": {secret.name: secret.required_keys for secret in secrets if secret.name},
        "image": lines,
        "env": images.environment(lines),
        "mounts": sorted(
            path for name in definition.mount_ids for path in plane.mounts.get(name, {})
        ),
        "snapshot": definition.checkpointing_enabled,
        "gpu_snapshot": _flag(definition.experimental_options, "enable_gpu_snapshot"),
        "regions": list(definition.scheduler_placement.regions),
        "nonpreemptible": definition.scheduler_placement.nonpreemptible,
        "schedule": _schedule(definition),
        "single_use_containers": definition.single_use_containers,
        "block_network": definition.block_network,
        "experimental_options": dict(definition.experimental_options),
        "min_containers": settings.min_containers,
        "max_containers": settings.max_containers,
        "buffer_containers": settings.buffer_containers,
        "scaleup_window": settings.scaleup_window,
        "scaledown_window": settings.scaledown_window,
    }


def _sizes(function: Function) -> dict[str, Any]:
    definition = function.definition
    target = function.settings.target_concurrency_float or definition.target_concurrent_inputs
    return {
        "gpus": list(function.gpus),
        "cpu": definition.resources.milli_cpu / 1000,
        "memory_mib": definition.resources.memory_mb,
        "target_concurrency": float(target),
        "max_concurrency": definition.max_concurrent_inputs,
        "timeout_s": definition.timeout_secs,
        "startup_timeout_s": definition.startup_timeout_secs,
        "retries": definition.retry_policy.retries,
        "retry_delay_s": definition.retry_policy.initial_delay_ms / 1000,
        "retry_backoff": definition.retry_policy.backoff_coefficient,
        "cluster_size": definition._experimental_group_size,
        "rdma": definition.resources.rdma,
    }


def _volume(plane: Plane, mount: pb.VolumeMount) -> VolumeView:
    volume = plane.volumes[mount.volume_id]
    return VolumeView(
        name=volume.name,
        read_only=mount.read_only,
        version=int(volume.version),
        sub_path=mount.sub_path,
    )


def _schedule(definition: pb.Function) -> str:
    kind = definition.schedule.WhichOneof("schedule_oneof")
    if kind == "cron":
        return f"cron {definition.schedule.cron.cron_string}"
    if kind == "period":
        set_fields = definition.schedule.period.ListFields()
        return "every " + " ".join(f"{value:g} {field.name}" for field, value in set_fields)
    return ""


def _flag(options: Mapping[str, str], name: str) -> bool:
    return options.get(name, "").lower() in {"true", "1"}


def call_view(plane: Plane, call: FunctionCall) -> CallView:
    """The call as it is now: a status per input, the containers that each input was given to."""
    definition = call.function.definition
    return CallView(
        id=call.id,
        app=plane.apps[call.function.app_id].name,
        function=call.function.name,
        gpus=list(call.function.gpus),
        timeout_s=definition.timeout_secs,
        memory_mib=definition.resources.memory_mb,
        cpu=definition.resources.milli_cpu / 1000,
        retries=definition.retry_policy.retries,
        inputs=[item.id for item in call.inputs],
        statuses=[_status(item) for item in call.inputs],
        containers=[list(item.containers) for item in call.inputs],
    )


def _status(item: Input) -> str:
    if item.output is None:
        return "running" if item.container else "queued"
    name = str(pb.GenericResult.GenericStatus.Name(item.output.result.status))
    return name.removeprefix("GENERIC_STATUS_").lower()
