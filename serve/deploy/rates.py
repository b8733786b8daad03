"""What a deployment costs by the hour: from rates, before there is a bill.

The shipped rates are public prices as of 2026-11, in USD a second. `modal billing rates` has
those of an account; they win where they are known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from serve.deploy.config import ServingConfig
from serve.deploy.sections import ContainerConfig

CPU = "CPU"
MEMORY_GIB = "MEMORY_GIB"

SHIPPED: Mapping[str, float] = MappingProxyType(
    {
        "T4": 0.000164,
        "L4": 0.000222,
        "A10": 0.000306,
        "L40S": 0.000542,
        "A100-40GB": 0.000583,
        "A100": 0.000583,
        "A100-80GB": 0.000694,
        "RTX-PRO-6000": 0.000842,
        "H100": 0.001097,
        "H200": 0.001261,
        "B200": 0.001736,
        "B300": 0.001972,
        CPU: 0.0000131,
        MEMORY_GIB: 0.00000222,
    }
)
"""A GPU, a core, a GiB."""

_BROAD, _NARROW = 1.5, 1.75
"""What choosing regions multiplies a price with: several, or one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """USD an hour. None where a GPU has no known rate."""

    policy_each: float | None
    """A replica, on the dearest of its GPUs."""
    gateway_each: float
    idle: float | None
    """Without a request: what always stays up."""
    most: float | None
    """With as many containers as there may be; None also where there is no such limit."""


def estimate(config: ServingConfig, rates: Mapping[str, float] = SHIPPED) -> Estimate:
    """Return what a deployment costs by the hour."""
    policy, gateway = config.deploy.policy, config.deploy.gateway
    light = _each(gateway, rates)
    known = [_gpu(gpu, rates) for gpu in policy.gpu]
    heavy = None
    if all(price is not None for price in known):
        dearest = max((price for price in known if price is not None), default=0.0)
        heavy = _each(policy, rates) + dearest * _region(policy)
    gateways = gateway.max_containers if gateway.target_concurrency else 1
    return Estimate(
        policy_each=heavy,
        gateway_each=light,
        idle=None
        if heavy is None and policy.min_containers
        else (heavy or 0.0) * policy.min_containers + light * gateway.min_containers,
        most=None
        if heavy is None or policy.max_containers is None or gateways is None
        else heavy * policy.max_containers + light * gateways,
    )


def lines(config: ServingConfig) -> list[str]:
    """Say what it costs, for people."""
    found = estimate(config)
    policy, gateway = config.deploy.policy, config.deploy.gateway
    gpus = " or ".join(policy.gpu) or "no GPU"
    up = f"{policy.min_containers} replicas, {gateway.min_containers} gateways"
    return [
        f"replica   {_usd(found.policy_each)} ({gpus})",
        f"gateway   {_usd(found.gateway_each)}",
        f"idle      {_usd(found.idle)} ({up})",
        f"at most   {_usd(found.most)}",
    ]


def _gpu(gpu: str, rates: Mapping[str, float]) -> float | None:
    name, _, count = gpu.partition(":")
    rate = rates.get(name.rstrip("!"))
    return None if rate is None else rate * int(count or 1) * 3600


def _each(section: ContainerConfig, rates: Mapping[str, float]) -> float:
    rate = section.cpu * rates[CPU] + section.memory_mib / 1024 * rates[MEMORY_GIB]
    return rate * 3600 * _region(section)


def _region(section: ContainerConfig) -> float:
    if not section.regions:
        return 1.0
    return _NARROW if len(section.regions) == 1 else _BROAD


def _usd(amount: float | None) -> str:
    return "unknown" if amount is None else f"{amount:.2f} USD an hour"
