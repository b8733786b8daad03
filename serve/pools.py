"""Which replicas a config asks for: engines of our own, upstreams, or a Modal server.

Puts pools together, and says how an engine behind a replica is reached.
"""

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any

from serve.config import EngineConfig
from serve.engine.command import Device, DeviceKind, detect, engine_command
from serve.engine.launch import LaunchedEngine
from serve.engine.vllm import VllmAdmin
from serve.models import resolve
from serve.policies.modal_volume import ModalVolume
from serve.policies.store import PolicyStore
from serve.policies.volume import SharedVolume
from serve.pool.base import Pool
from serve.pool.discovery import Discovery
from serve.pool.local import LocalPool
from serve.pool.modal_pool import ModalPool
from serve.pool.modal_server import ModalServer
from serve.pool.replicas import Replica
from serve.pool.scaling import Scaling
from serve.pool.static import StaticPool
from serve.pool.tls import trusting
from serve.settings import ModalConfig, ServeConfig


async def pool_of(
    config: ServeConfig,
    policies: PolicyStore,
    tls: ssl.SSLContext | None,
    server: Discovery | None = None,
) -> tuple[dict[str, int], Pool]:
    """Return the pool, and which versions its engines hold when they start.

    `server` takes the place of the one that `config.modal` names.
    """
    health = {**config.health.model_dump(), "scrape": scrape}
    if config.modal is not None:
        return {}, _modal(config, config.modal, tls, server, health)
    if config.model is None:
        headers = config.remote.headers()
        return {}, StaticPool(config.upstreams, tls=tls, headers=headers, **health)
    checkpoint, name = resolve(config.model)
    name = config.name or name
    device = _device(config)
    known = await asyncio.to_thread(policies.register, name, checkpoint)

    def engine(index: int, port: int) -> LaunchedEngine:
        return _engine(config, device, checkpoint, name, index, port)

    pool = LocalPool(
        engine,
        Scaling(least=config.replicas, most=config.most_replicas, **config.scaling.model_dump()),
        **health,
    )
    return {name: known.version}, pool


def _modal(
    config: ServeConfig,
    told: ModalConfig,
    tls: ssl.SSLContext | None,
    server: Discovery | None,
    health: dict[str, Any],
) -> ModalPool:
    headers = config.remote.headers()
    if server is None:
        server = ModalServer(
            told.app, told.server, environment=told.environment, headers=headers, tls=tls
        )
    return ModalPool(
        server,
        tls=tls,
        headers=headers,
        poll_s=told.poll_s,
        quiet_after_s=told.quiet_after_s,
        drain_s=told.drain_s,
        **health,
    )


def volume_of(config: ServeConfig) -> SharedVolume | None:
    """Return the volume that the policies are on, if any; raise ConfigError without its SDK."""
    told = config.volume
    if told is None:
        return None
    root = told.root or config.policies_root
    return ModalVolume(told.name, root, environment=told.environment)


def believed(config: ServeConfig) -> ssl.SSLContext | None:
    """Return whose certificates replicas elsewhere may have."""
    urls = config.upstreams if config.modal is None else ("https://",)
    return trusting(urls, config.remote.ca)


def _device(config: ServeConfig) -> Device:
    """Say what the engines compute on; a program of the user's own knows that by itself."""
    return Device(kind=DeviceKind.CPU) if config.engine.program else detect()


def _engine(
    config: ServeConfig, device: Device, checkpoint: Path, name: str, index: int, port: int
) -> LaunchedEngine:
    settings = config.engine
    told = EngineConfig(
        checkpoint=checkpoint,
        model=name,
        port=port,
        max_model_len=settings.max_model_len,
        lora=settings.lora,
        max_loras=settings.max_loras,
        max_lora_rank=settings.max_lora_rank,
        swappable=settings.swappable,
        cores=_cores(config, device, index),
        extra_args=settings.extra_args,
        program=settings.program,
    )
    log = config.state / "logs" / f"{name.replace('/', '--')}-{index}.log"
    return LaunchedEngine(engine_command(told, device), model=name, port=port, log=log)


def _cores(config: ServeConfig, device: Device, index: int) -> str | None:
    """Return the cores of one of several engines on a CPU; None leaves the choice to vLLM."""
    if device.kind is not DeviceKind.CPU or config.most_replicas < 2:
        return None
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // config.most_replicas)
    first = index % config.most_replicas * share % len(cores)
    return ",".join(map(str, cores[first : first + share]))


def admin_of(replica: Replica) -> VllmAdmin:
    """Return a client of the engine behind a replica."""
    return VllmAdmin(replica.base_url, headers=replica.headers, tls=replica.tls)


def admin_at(pool: Pool, base_url: str) -> VllmAdmin:
    """Return a client of the engine behind the replica at that URL."""
    for replica in pool.replicas:
        if replica.base_url == base_url:
            return admin_of(replica)
    return VllmAdmin(base_url)


async def scrape(replica: Replica) -> dict[str, float]:
    """Return the few counters of an engine that are shown."""
    if replica.labels:
        return {}  # a gateway's counters are for its admins
    async with admin_of(replica) as admin:
        return await admin.metrics()


def has_gpu(config: ServeConfig) -> bool:
    """Whether engines that are started here compute on a GPU."""
    return config.model is not None and _device(config).kind is DeviceKind.GPU
