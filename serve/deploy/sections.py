"""The `deploy` section of a config: on what a deployment runs, and what it may cost."""

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_GPU = re.compile(r"[A-Z0-9][A-Z0-9.-]*!?(?::([1-8]))?")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


class Settings(BaseModel):
    """What all sections are: frozen, and nothing that they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Snapshot(StrEnum):
    """What a cold start is restored from."""

    OFF = "off"
    """Nothing: the engine starts anew."""
    CPU = "cpu"
    """The memory of a ready container without a GPU."""
    GPU = "gpu"
    """The memory of a container whose engine sleeps, and its GPU's."""


class GatewayAuth(StrEnum):
    """Who asks a client of the gateway for a key."""

    KEYS = "keys"
    """The gateway: keys with scopes and limits; its URL is open to everybody."""
    EDGE = "edge"
    """Modal: a proxy token of the workspace; whoever has one may do everything."""


def _gpu(text: str) -> str:
    name = text.upper()
    if not _GPU.fullmatch(name):
        raise ValueError(f"expected a GPU such as H100, A100-80GB or L4:2, got {text!r}")
    return name


def _count(gpu: str) -> int:
    found = _GPU.fullmatch(gpu)
    assert found is not None  # validated
    return int(found[1] or 1)


def _named(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"expected letters, digits, dots, dashes and underscores, got {text!r}")
    return text


def _absolute(path: PurePosixPath) -> PurePosixPath:
    if not path.is_absolute() or len(path.parts) < 2 or ".." in path.parts:
        raise ValueError(f"expected an absolute folder such as /palaestra, got {str(path)!r}")
    return path


def _word(value: Any) -> Any:  # noqa: ANN401  # whatever YAML holds
    """Take the `off` of YAML, which is its word for false, for what it says."""
    return "off" if value is False else value


def _several(value: Any) -> Any:  # noqa: ANN401  # whatever YAML holds
    """Take one for a list of one."""
    return (value,) if isinstance(value, str) else value


_Name = Annotated[str, AfterValidator(_named)]
_Words = Annotated[tuple[str, ...], BeforeValidator(_several)]


class SecretRef(Settings):
    """A secret of Modal's, whose keys become variables in the container."""

    name: _Name
    required_keys: tuple[str, ...] = ()
    """Deploying fails where one is missing."""


class ContainerConfig(Settings):
    """What every container has, and how many there are."""

    cpu: float = Field(default=2.0, gt=0, le=64)
    """Cores that it gets at least."""
    memory_mib: int = Field(default=2048, ge=128)
    min_containers: int = Field(default=0, ge=0)
    """So many stay up without a request: they cost money all the time."""
    max_containers: int | None = Field(default=None, ge=1)
    startup_timeout_s: int = Field(default=120, ge=1, le=86_400)
    """One that is not ready by then is given up."""
    exit_grace_s: int = Field(default=30, ge=0, le=3600)
    """How long requests in flight may take when it is stopped."""
    scaledown_window_s: int = Field(default=300, ge=2, le=3600)
    """One without requests for so long is stopped."""
    regions: _Words = ()
    """Where it may run: any is the cheapest."""
    cloud: str | None = None
    secrets: tuple[SecretRef, ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_containers is not None and self.min_containers > self.max_containers:
            raise ValueError(
                f"min_containers is {self.min_containers}, max_containers {self.max_containers}"
            )
        return self


class PolicyContainers(ContainerConfig):
    """The replicas: one engine each."""

    gpu: Annotated[tuple[Annotated[str, AfterValidator(_gpu)], ...], BeforeValidator(_several)] = (
        "H100",
        "A100-80GB",
    )
    """What to ask for, the first that is free; none is vLLM on the CPU."""
    cpu: float = Field(default=4.0, gt=0, le=64)
    memory_mib: int = Field(default=32_768, ge=128)
    max_containers: int | None = Field(default=4, ge=1)
    buffer_containers: int = Field(default=0, ge=0)
    """Idle ones besides those that are needed, while any is."""
    target_concurrency: float = Field(default=32.0, gt=0)
    """Requests for each container from which another one is started."""
    max_concurrency: int = Field(default=64, ge=1)
    """Requests in one container above which Modal answers 429."""
    scaleup_window_s: int = Field(default=5, ge=1)
    """How long there must be too many requests."""
    startup_timeout_s: int = Field(default=900, ge=1, le=86_400)
    exit_grace_s: int = Field(default=60, ge=0, le=3600)

    @property
    def gpus_each(self) -> int:
        """How many GPUs one container has."""
        return _count(self.gpu[0]) if self.gpu else 0

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len({_count(gpu) for gpu in self.gpu}) > 1:
            raise ValueError(f"gpu: expected as many GPUs in each choice, got {list(self.gpu)}")
        if self.target_concurrency > self.max_concurrency:
            raise ValueError(
                f"target_concurrency is {self.target_concurrency:g}, max_concurrency "
                f"{self.max_concurrency}"
            )
        return self


class GatewayContainers(ContainerConfig):
    """The front door: one that stays up holds requests while replicas start."""

    min_containers: int = Field(default=1, ge=0)
    target_concurrency: float | None = Field(default=None, gt=0)
    """Requests for each from which another one is started; None is one gateway only."""
    auth: GatewayAuth = GatewayAuth.KEYS
    admin_secret: _Name = "palaestra-admin"  # noqa: S105  # its name
    """With auth: keys, the secret whose PALAESTRA_ADMIN_KEY is the first key."""
    proxy_secret: _Name | None = "palaestra-proxy"  # noqa: S105  # its name
    """The secret whose PALAESTRA_PROXY_TOKEN gets it past Modal's edge to the replicas."""
    mounts: _Words = ()
    """Further routes, as MODULE:FACTORY; see `serve.front.control.mounts`."""


class PrefetchConfig(Settings):
    """The function that brings a model into the cache volume."""

    cpu: float = Field(default=4.0, gt=0, le=64)
    memory_mib: int = Field(default=16_384, ge=128)
    timeout_s: int = Field(default=3600, ge=1, le=86_400)
    secrets: tuple[SecretRef, ...] = ()
    """Such as the one that has HF_TOKEN, for models that ask for it."""


class VolumesConfig(Settings):
    """The names of the volumes, and the folder under which containers see them."""

    root: Annotated[PurePosixPath, AfterValidator(_absolute)] = PurePosixPath("/palaestra")
    policies: _Name = "palaestra-policies"
    """Versions: read-only in replicas."""
    cache: _Name = "palaestra-cache"
    """Models, and what vLLM compiled."""
    state: _Name = "palaestra-state"
    """The gateway's keys and usage."""
    runs: _Name | None = None
    """Of training, so that it can publish by a path; read-only in the gateway."""


class ImageConfig(Settings):
    """What the containers' images are built of."""

    cuda: str = "12.9.1-devel-ubuntu24.04"
    """The tag of NVIDIA's image, which replicas with a GPU start from."""
    extra_pip: tuple[str, ...] = ()
    """Requirements on top of the pins, in all images."""
    apt: tuple[str, ...] = ()


class DeployConfig(Settings):
    """On what the deployment runs."""

    app: _Name = "palaestra"
    """What Modal calls it; part of its URL."""
    policy: PolicyContainers = PolicyContainers()
    gateway: GatewayContainers = GatewayContainers()
    prefetch: PrefetchConfig = PrefetchConfig()
    volumes: VolumesConfig = VolumesConfig()
    image: ImageConfig = ImageConfig()
    snapshot: Annotated[Snapshot, BeforeValidator(_word)] = Snapshot.OFF
    routing_region: str = "us-east"
    """Where requests enter Modal."""
    env: dict[str, str] = Field(default_factory=dict)
    """Set in all containers."""
