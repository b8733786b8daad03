"""The administrative routes: they change things, and every change is audited. Scope admin only."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from serve.accounts.limits import Denied
from serve.accounts.passwords import id_of
from serve.accounts.records import KeyInfo
from serve.front.control.bodies import (
    AuditAnswer,
    ErrorAnswer,
    KeptAnswer,
    KeyAnswer,
    KeyBody,
    KeyIdBody,
    KeysAnswer,
    LoginBody,
    NewKeyAnswer,
    Overview,
    PoliciesAnswer,
    PoolAnswer,
    PruneAnswer,
    PruneBody,
    PublishBody,
    RollbackBody,
    ScaleBody,
    SessionAnswer,
    UsageAnswer,
    UsageRow,
    VersionAnswer,
)
from serve.front.control.guard import (
    COOKIE,
    AdminDep,
    Bearer,
    Refused,
    ServicesDep,
    ensure_local,
    ensure_same_origin,
    source_of,
)
from serve.front.control.services import Services
from serve.front.control.sight import Sight, audit_row, key_answer
from serve.wire import Scope, SwapMode

logger = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorAnswer, "description": words}
    for status, words in {
        400: "The request cannot be read, or asks for what cannot be.",
        401: "No key, a wrong one, or a session that has ended.",
        403: "The key's scopes do not cover this, or another site's page asks.",
        404: "There is no such thing.",
        409: "The version is taken by other bytes, or lies behind the newest.",
        415: "The body is not declared to be JSON.",
        429: "Too many failures came from this address.",
        503: "The state cannot be read or written now.",
    }.items()
}
router = APIRouter(prefix="/admin", responses=_ERRORS, tags=["admin"])
guarded = APIRouter(dependencies=[Bearer])


def sight_of(request: Request) -> Sight:
    """Return what the application sees with."""
    sight: Sight = request.app.state.sight
    return sight


@guarded.get("/overview")
async def overview(request: Request, caller: AdminDep) -> Overview:
    """Return everything that the dashboard shows."""
    return await sight_of(request).overview(caller.actor)


@guarded.get("/pool")
async def pool(request: Request, _: AdminDep) -> PoolAnswer:
    """Return all replicas."""
    return sight_of(request).pool()


@guarded.post("/pool/scale")
async def scale(
    request: Request, body: ScaleBody, services: ServicesDep, caller: AdminDep
) -> PoolAnswer:
    """Want so many replicas from now on."""
    await services.pool.scale(body.replicas)
    await _audit(request, services, caller.actor, "pool.scale", str(body.replicas))
    return sight_of(request).pool()


@guarded.get("/policies")
async def policies(request: Request, _: AdminDep) -> PoliciesAnswer:
    """Return all policies, their versions, and where each is live."""
    return PoliciesAnswer(policies=await sight_of(request).policies())


@guarded.post("/publish", status_code=201)
async def publish(
    request: Request, body: PublishBody, services: ServicesDep, caller: AdminDep
) -> VersionAnswer:
    """Make a checkpoint on the gateway's disk a policy's newest version.

    The answer comes when it is on the disk; the replicas take it up afterwards, one after the
    other: `live_on` in /admin/policies says how far they are.
    """
    info = await asyncio.to_thread(
        services.policies.publish,
        body.name,
        Path(body.path),
        version=body.version,
        kind=body.kind,
        parent=body.parent,
        metrics=body.metrics,
        probes=None if body.probes is None else body.probes.probes(),
        swap=body.swap,
    )
    label = f"{info.name}@{info.version}"
    _converge(request, services, info.name, body.swap)
    await _audit(request, services, caller.actor, "policy.publish", label, body.path)
    return sight_of(request).version(info)


@guarded.post("/rollback")
async def rollback(
    request: Request, body: RollbackBody, services: ServicesDep, caller: AdminDep
) -> VersionAnswer:
    """Let a policy's name mean an older version again; the replicas follow afterwards."""
    info = await asyncio.to_thread(
        services.policies.rollback, body.name, body.version, swap=body.swap
    )
    label = f"{info.name}@{info.version}"
    _converge(request, services, info.name, body.swap)
    await _audit(request, services, caller.actor, "policy.rollback", label)
    return sight_of(request).version(info)


@guarded.post("/policies/prune")
async def prune(
    request: Request, body: PruneBody, services: ServicesDep, caller: AdminDep
) -> PruneAnswer:
    """Delete the weights of versions for good; what they were stays on record.

    Those that are in use stay: the one that the name means, those that a replica serves or a rule
    names, and the base of a LoRA that stays.
    """
    pruned = await asyncio.to_thread(services.policies.prune, body.name, body.versions)
    gone = ", ".join(map(str, pruned.versions)) or "none"
    await _audit(request, services, caller.actor, "policy.prune", body.name, f"versions: {gone}")
    return PruneAnswer(
        versions=list(pruned.versions),
        kept=[KeptAnswer(version=each, reason=why) for each, why in pruned.kept.items()],
        freed_bytes=pruned.freed_bytes,
    )


@guarded.get("/keys")
async def keys(request: Request, _: AdminDep) -> KeysAnswer:
    """Return all keys, revoked ones too, without their secrets."""
    return KeysAnswer(keys=await sight_of(request).keys())


@guarded.post("/keys", status_code=201)
async def create_key(
    request: Request, body: KeyBody, services: ServicesDep, caller: AdminDep
) -> NewKeyAnswer:
    """Make a key. Its text is in this answer and nowhere else."""
    info, text = await asyncio.to_thread(
        services.store.create_key, body.name, body.scopes, body.limits(), actor=caller.actor
    )
    await _reload(request, services)
    answer = key_answer(info, services.auth.accounts.get(info.id))
    return NewKeyAnswer(**answer.model_dump(), key=text)


@guarded.post("/keys/revoke")
async def revoke_key(
    request: Request, body: KeyIdBody, services: ServicesDep, caller: AdminDep
) -> KeyAnswer:
    """End a key for good, at once."""
    await _ensure_key(services, body.id)
    info = await asyncio.to_thread(services.store.revoke, body.id, actor=caller.actor)
    await _reload(request, services)
    return key_answer(info, None)


@guarded.post("/keys/rotate")
async def rotate_key(
    request: Request, body: KeyIdBody, services: ServicesDep, caller: AdminDep
) -> NewKeyAnswer:
    """Give a key a new secret; the old one is dead at once. Limits and usage stay."""
    await _ensure_key(services, body.id)
    text = await asyncio.to_thread(services.store.rotate, body.id, actor=caller.actor)
    await _reload(request, services)
    info = await _ensure_key(services, body.id)
    answer = key_answer(info, services.auth.accounts.get(info.id))
    return NewKeyAnswer(**answer.model_dump(), key=text)


@guarded.get("/usage")
async def usage(
    services: ServicesDep,
    _: AdminDep,
    since_s: Annotated[float, Query(ge=0, le=1e12, allow_inf_nan=False)] = 0.0,
) -> UsageAnswer:
    """Return the ledger from the hour of `since_s` (Unix seconds) on."""
    rows = await asyncio.to_thread(services.store.usage, since_s)
    return UsageAnswer(usage=[UsageRow.model_validate(row, from_attributes=True) for row in rows])


@guarded.get("/audit")
async def audit(
    services: ServicesDep, _: AdminDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> AuditAnswer:
    """Return the newest administrative actions, the newest first."""
    entries = await asyncio.to_thread(services.store.audit_log, limit)
    return AuditAnswer(audit=[audit_row(entry) for entry in entries])


@router.post("/login")
async def login(
    request: Request, response: Response, body: LoginBody, services: ServicesDep
) -> SessionAnswer:
    """Begin a session of the dashboard, kept in a cookie, for an admin's key or password."""
    ensure_same_origin(request)
    auth, source = services.auth, source_of(request)
    if auth.open:
        ensure_local(request)
    if body.key is not None:
        begun = await auth.login_with_key(body.key.get_secret_value(), source)
    else:
        assert body.user is not None
        assert body.password is not None
        begun = await auth.login(body.user, body.password.get_secret_value(), source)
    if isinstance(begun, Denied):
        raise Refused.because(begun)
    token, session = begun
    if not session.may(Scope.ADMIN):
        auth.sessions.end(token)
        raise Refused(
            403,
            "The dashboard needs the scope admin.",
            kind="permission_error",
            code="insufficient_scope",
        )
    await _audit(request, services, session.actor, "session.begin", source)
    response.set_cookie(
        COOKIE,
        token,
        path="/admin",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return SessionAnswer(
        actor=session.actor,
        scopes=[scope for scope in Scope if session.may(scope)],
        expires_s=session.expires_s,
    )


@router.post("/logout", status_code=204)
async def logout(request: Request, response: Response, services: ServicesDep) -> None:
    """End the session whose cookie came along; harmless without one."""
    ensure_same_origin(request)
    token = request.cookies.get(COOKIE)
    if token is not None:
        services.auth.sessions.end(token)
    response.delete_cookie(COOKIE, path="/admin", httponly=True, samesite="strict")


router.include_router(guarded)


async def _audit(
    request: Request,
    services: Services,
    actor: str,
    action: str,
    target: str,
    detail: str = "",
) -> None:
    await asyncio.to_thread(services.store.audit, actor, action, target, detail)
    sight_of(request).forget()


async def _reload(request: Request, services: Services) -> None:
    await services.auth.reload()
    sight_of(request).forget()


async def _ensure_key(services: Services, key_id: str) -> KeyInfo:
    """Return a key; raise Refused if there is none, ConfigError if this cannot be one's id."""
    wanted = id_of(key_id)
    for info in await asyncio.to_thread(services.store.keys):
        if info.id == wanted:
            return info
    raise Refused(404, f"There is no key {wanted}.", kind="not_found_error", code="key_not_found")


def _converge(request: Request, services: Services, name: str, swap: SwapMode) -> None:
    """Let the replicas follow while the caller gets the answer."""
    tasks: set[asyncio.Task[None]] = request.app.state.tasks
    task = asyncio.create_task(services.sync.converge(name, swap), name=f"converge {name}")
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    task.add_done_callback(_report)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed: %s", task.get_name(), error)
