"""Puts the gateway together and keeps it up until a signal, or until there is nothing to serve.

The composition root: the only place that knows every room. Says nothing itself: it is told whom to
tell.
"""

import asyncio
import contextlib
import resource
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from serve.accounts.auth import Auth
from serve.accounts.ledger import Ledger
from serve.accounts.store import AccountStore
from serve.config import is_loopback
from serve.engine.launch import ensure_free, reachable
from serve.errors import ConfigError
from serve.front.control.app import Services, control_app
from serve.front.control.guard import needing
from serve.front.control.mounts import MountContext, mounted, routers
from serve.front.gateway import Gateway, Parts, policy_names
from serve.front.relay.naming import Resolver
from serve.front.sight.access_log import AccessLog
from serve.front.sight.meters import Meters
from serve.policies.store import PolicyStore
from serve.policies.sync import Sync
from serve.pool.base import Pool, Prepare
from serve.pool.discovery import Discovery
from serve.pool.lookout import Lookout
from serve.pool.replicas import Replica
from serve.pool.routing import Router
from serve.pools import admin_at, admin_of, believed, has_gpu, pool_of, volume_of
from serve.settings import RulesFile, ServeConfig

_RULES_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Whom to tell what."""

    listening: Callable[[str], None]
    """The base URL, as soon as requests are taken; they are held until a replica is ready."""
    waiting: Callable[[int], None]
    """The seconds that have passed, each second until a replica is ready."""
    ready: Callable[[str, str], None]
    """The base URL and a policy's name, once, when the first replica answers."""


async def stay_up(config: ServeConfig, told: Told, *, rules: Path | None = None) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; requests in flight then finish first.

    `rules` is the YAML file whose rules are followed as they change. Raises ConfigError before
    anything is started, and EngineDied if no engine can be kept alive.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    ensure_free(config.host, config.port)
    _raise_file_limit()
    async with opened(config, rules) as (gateway, pool):
        url = f"{_url(config, gateway)}/v1"
        told.listening(url)
        stop = loop.create_task(stopped.wait())
        try:
            await _until_ready(pool, stop, told.waiting)
            if not stop.done() and not pool.fatal.done():
                told.ready(url, ", ".join(sorted(policy_names(pool))) or "(none)")
                ends: set[asyncio.Future[Any]] = {stop, pool.fatal}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if pool.fatal.done():
                raise pool.fatal.result()
        finally:
            stop.cancel()
            await gateway.stop(config.front.grace_s)


async def _until_ready(
    pool: Pool, stop: "asyncio.Task[Any]", waiting: Callable[[int], None]
) -> None:
    """Return when a replica is ready, none ever will be, or `stop` is done."""
    ready = asyncio.Event()

    def look(replica: Replica) -> None:
        if replica.is_ready:
            ready.set()

    pool.listeners.append(look)
    for replica in pool.replicas:
        look(replica)
    came = asyncio.create_task(ready.wait())
    watched: set[asyncio.Future[Any]] = {came, stop, pool.fatal}
    seconds = 0
    try:
        while not (came.done() or stop.done() or pool.fatal.done()):
            await asyncio.wait(watched, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if not came.done() and pool.replicas:  # without one, a request is waited for
                seconds += 1
                waiting(seconds)
    finally:
        came.cancel()
        pool.listeners.remove(look)


@contextlib.asynccontextmanager
async def opened(
    config: ServeConfig, rules: Path | None = None, *, server: Discovery | None = None
) -> AsyncIterator[tuple[Gateway, Pool]]:
    """Start everything in order, as `stay_up` does; stop it in reverse.

    `server` takes the place of the one that `config.modal` names.
    """
    mounts = mounted(config.mounts)
    async with contextlib.AsyncExitStack() as stack:
        store = await asyncio.to_thread(AccountStore.open, config.state)
        stack.callback(store.close)
        auth = Auth(store)
        await auth.start()
        stack.push_async_callback(auth.stop)
        _ensure_guarded(config, auth)
        ledger = Ledger(store)
        await ledger.start()
        stack.push_async_callback(ledger.stop)
        cards: dict[str, dict[str, Any]] = {}
        policies, pool, sync = await _following(config, stack, cards, server)
        gateway = await _front(config, stack, auth, ledger, pool, sync)
        services = Services(
            pool=pool,
            policies=policies,
            sync=sync,
            store=store,
            auth=auth,
            meters=gateway.meters,
            models=cards,
            aliases=lambda: gateway.resolver.rules.aliases,
            is_secure=gateway.is_secure,
            desired=lambda: pool.desired,
            trusts_edge=config.edge_auth,
            gpu_available=has_gpu(config),
            version=metadata.version("palaestra"),
        )
        stops: list[Callable[[], Awaitable[None]]] = []
        context = _context(config, gateway, store, stops)
        gateway.app = control_app(services, routers(mounts, context))
        if rules is not None:
            file = RulesFile(rules, config.rules)
            watch = asyncio.create_task(_follow(file, gateway.resolver, sync))
            stack.callback(watch.cancel)
        await gateway.start(tls=_tls(config))
        await stack.enter_async_context(pool)
        await stack.enter_async_context(sync)
        for stop in stops:
            stack.push_async_callback(stop)
        yield gateway, pool


async def _following(
    config: ServeConfig,
    stack: contextlib.AsyncExitStack,
    cards: dict[str, dict[str, Any]],
    server: Discovery | None,
) -> tuple[PolicyStore, Pool, Sync]:
    """Return the store, the pool, and what keeps that at its versions; nothing has started."""
    policies = PolicyStore(
        config.policies_root, volume=volume_of(config), read_only=config.policies_read_only
    )
    tls = believed(config)
    boots, pool = await pool_of(config, policies, tls, server)
    lookout = None
    if config.model is None:
        lookout = Lookout(pool, every_s=config.remote.look_s, tls=tls, cards=cards)
        await stack.enter_async_context(lookout)
    sync = Sync(
        policies,
        pool,
        boots=boots,
        admin=lambda base_url: admin_at(pool, base_url),
        most_adapters=config.engine.max_loras,
        lookout=lookout,
    )
    pool.prepare = _preparing(sync, cards)
    sync.pinned = config.rules.versions()
    return policies, pool, sync


def _context(
    config: ServeConfig,
    gateway: Gateway,
    store: AccountStore,
    stops: list[Callable[[], Awaitable[None]]],
) -> MountContext:
    return MountContext(
        require=needing,
        state=config.state,
        base_url=lambda: _url(config, gateway),
        audit=lambda *what: asyncio.to_thread(store.audit, *what),
        on_stop=stops.append,
    )


def _url(config: ServeConfig, gateway: Gateway) -> str:
    """Return where the gateway listens, for those on this machine."""
    host, port = gateway.address
    return f"{'https' if config.tls_cert else 'http'}://{reachable(host)}:{port}"


async def _front(
    config: ServeConfig,
    stack: contextlib.AsyncExitStack,
    auth: Auth,
    ledger: Ledger,
    pool: Pool,
    sync: Sync,
) -> Gateway:
    access_log = None
    if config.access_log is not None:
        access_log = AccessLog(config.access_log).start()
        stack.push_async_callback(asyncio.to_thread, access_log.stop)
    tracer = None
    if config.tracing is not None:
        tracer = _tracer(config.tracing)
        stack.push_async_callback(asyncio.to_thread, tracer.stop)
    return Gateway(
        Parts(
            pool=pool,
            router=Router(pool.replicas, routing=config.routing),
            resolver=Resolver(config.rules, lambda: policy_names(pool) or sync.names),
            auth=auth,
            ledger=ledger,
            meters=Meters(),
            limits=config.front,
            swaps=lambda: sync.swaps,
            access_log=access_log,
            tracer=tracer,
            edge_tls=config.edge_tls or config.edge_auth,
            trusts_edge=config.edge_auth,
        ),
        host=config.host,
        port=config.port,
    )


def _preparing(sync: Sync, cards: dict[str, dict[str, Any]]) -> Prepare:
    """Bring a replica to its versions, and keep what its engine says of its models."""

    async def prepare(replica: Replica) -> None:
        await sync.prepare(replica)
        if replica.labels:
            return  # it said so itself
        async with admin_of(replica) as admin:
            for model in await admin.models():
                cards[model.name] = {"root": model.root, "max_model_len": model.max_model_len}

    return prepare


async def _follow(file: RulesFile, resolver: Resolver, sync: Sync) -> None:
    """Take new rules as the file changes, until cancelled."""
    while True:
        await asyncio.sleep(_RULES_S)
        if await asyncio.to_thread(file.look):
            resolver.rules = file.rules
            sync.pinned = file.rules.versions()


def _ensure_guarded(config: ServeConfig, auth: Auth) -> None:
    """Raise ConfigError where anybody on the network could use the gateway."""
    if auth.open and not (config.edge_auth or is_loopback(config.host)):
        raise ConfigError(
            f"refusing to listen on {config.host} without a key: everybody who reaches it could "
            f"use the engines. Run: python -m serve keys create --state {config.state} "
            "--scope infer, or listen on 127.0.0.1, or say edge_auth: true if what stands in front "
            "proves who asks"
        )


def _raise_file_limit() -> None:
    """Allow as many connections as the system lets us; the usual soft limit is a thousand."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tls(config: ServeConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot read {config.tls_cert} and {config.tls_key}: {error}") from None
    return context


def _tracer(endpoint: str) -> Any:  # noqa: ANN401  # an extra's class
    try:
        from serve.front.sight.trace import Tracer  # noqa: PLC0415  # an extra
    except ImportError:
        raise ConfigError("tracing needs OpenTelemetry: pip install 'palaestra[tracing]'") from None
    return Tracer.to(endpoint)
