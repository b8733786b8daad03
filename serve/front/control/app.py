"""The control plane: a FastAPI application for everything that is not the data plane.

Models, health, metrics, documents and the dashboard's page are here, what changes things is in
`admin`. Every error is OpenAI's error object, and errors become statuses here only.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from serve import wire
from serve.config import is_loopback
from serve.errors import (
    ConfigError,
    EngineError,
    PolicyError,
    ServeError,
    StateError,
    UnknownPolicy,
    VersionConflict,
)
from serve.front.control import pages
from serve.front.control.admin import router as admin_router
from serve.front.control.admin import sight_of
from serve.front.control.bodies import (
    ErrorAnswer,
    HealthAnswer,
    ModelCard,
    ModelList,
    ReadyAnswer,
    ServingAnswer,
)
from serve.front.control.guard import (
    Bearer,
    CallerDep,
    Refused,
    ServicesDep,
    admin,
    source_of,
)
from serve.front.control.openapi import DATA_PLANE_PATHS, with_data_plane
from serve.front.control.services import Services
from serve.front.control.sight import Sight
from serve.front.sight.exposition import CONTENT_TYPE, exposition
from serve.pool.replicas import ReplicaState

__all__ = ["Services", "control_app"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_STATUSES: dict[type[ServeError], tuple[int, str, str]] = {
    UnknownPolicy: (404, "not_found_error", "policy_not_found"),
    VersionConflict: (409, "conflict_error", "version_conflict"),
    PolicyError: (400, "invalid_request_error", "bad_policy"),
    ConfigError: (400, "invalid_request_error", "bad_request"),
    StateError: (503, "service_unavailable_error", "state_unavailable"),
    EngineError: (503, "service_unavailable_error", "engine_unavailable"),
    ServeError: (500, "api_error", "internal_error"),
}
"""What each error means to a client; of an error's bases, the nearest counts."""
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_ALWAYS_OPEN = frozenset(("/health", "/ready"))
_WAKING = frozenset((ReplicaState.STARTING, ReplicaState.SYNCING, ReplicaState.DOWN))

routes = APIRouter()


def control_app(services: Services, mounts: Sequence[APIRouter] = ()) -> App:
    """Return the ASGI application. It needs no lifespan, and runs on the gateway's event loop.

    Routers of `mounts` come last: they take no route of ours.
    """
    app = FastAPI(
        title="Palaestra gateway",
        version=services.version,
        description="One front door to versioned policies on a pool of vLLM replicas.",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    app.state.sight = Sight(services)
    app.state.tasks = set()
    app.include_router(routes)
    app.include_router(admin_router)
    app.include_router(pages.router)
    for router in mounts:
        app.include_router(router)
    app.add_exception_handler(ServeError, _serve_error)
    app.add_exception_handler(wire.BadReference, _bad_reference)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal)
    generate = app.openapi
    app.openapi = lambda: with_data_plane(generate())  # type: ignore[method-assign]  # FastAPI's way
    return Shield(app, services)


class Shield:
    """What holds for every answer and every request, before FastAPI looks at them."""

    def __init__(self, app: App, services: Services) -> None:
        self.app = app
        self._services = services

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        refusal = self._refusal(scope)

        async def shielded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers(scope, message)]
            await send(message)

        if refusal is not None:
            await refusal(scope, receive, shielded)
        else:
            await self.app(scope, receive, shielded)

    def _refusal(self, scope: Message) -> Response | None:
        path, method = scope["path"], scope["method"]
        client = scope.get("client")
        source = scope.get("palaestra.peer") or (client[0] if client else "")
        if path not in _ALWAYS_OPEN and not self._services.is_secure(source, scope["headers"]):
            words = "This gateway is reached over HTTPS only: nobody must read keys on the way."
            return _answer(400, words, code="https_required")
        if path.startswith("/admin/") and method == "POST" and path != "/admin/logout":
            kind = dict(scope["headers"]).get(b"content-type", b"")
            if kind.partition(b";")[0].strip().lower() != b"application/json":
                return _answer(415, "Expected a body with Content-Type: application/json.")
        if path in DATA_PLANE_PATHS:
            if method == "POST":
                return _answer(404, f"{path} takes no query.", "not_found_error")
            return _answer(405, f"{path} takes POST only.", headers={"allow": "POST"})
        return None

    @staticmethod
    def _headers(scope: Message, message: Message) -> list[tuple[bytes, bytes]]:
        added = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]
        if all(name != b"cache-control" for name, _ in message["headers"]):
            added.append((b"cache-control", b"no-store"))
        if scope.get("scheme") == "https":
            added.append((b"strict-transport-security", b"max-age=31536000"))
        return added


@routes.get("/health", tags=["sight"])
async def health(services: ServicesDep) -> HealthAnswer:
    """Say that the process lives. Open to everybody, and never waits for anything."""
    return HealthAnswer(gpu_available=services.gpu_available, version=services.version)


@routes.get("/ready", tags=["sight"], responses={503: {"model": ReadyAnswer}})
async def ready(services: ServicesDep, response: Response) -> ReadyAnswer:
    """Say whether requests would be answered, at once or after a replica has been woken."""
    replicas = services.pool.replicas
    count = sum(replica.is_ready for replica in replicas)
    if count:
        return ReadyAnswer(ready=True, reason="", replicas_ready=count)
    if services.pool.can_wake and not any(replica.state in _WAKING for replica in replicas):
        words = "no replica is up; the first request wakes one and is held until then"
        return ReadyAnswer(ready=True, reason=words, replicas_ready=0)
    response.status_code = 503
    response.headers["retry-after"] = "5"
    states = ", ".join(sorted(f"{r.id} is {r.state.value}" for r in replicas[:20]))
    return ReadyAnswer(ready=False, reason=states or "there are no replicas", replicas_ready=0)


_NEEDS_KEY: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer},
    403: {"model": ErrorAnswer},
    429: {"model": ErrorAnswer},
}


@routes.get("/v1/models", tags=["sight"], responses=_NEEDS_KEY, dependencies=[Bearer])
async def models(request: Request, _: CallerDep) -> ModelList:
    """Return all names that a request may put into `model`: policies, live versions, aliases."""
    return ModelList(data=await sight_of(request).models())


@routes.get("/serving", tags=["sight"], responses=_NEEDS_KEY, dependencies=[Bearer])
async def serving(request: Request, _: CallerDep) -> ServingAnswer:
    """Return what would answer now; gateways in front of this one ask it each second."""
    return sight_of(request).serving()


@routes.get(
    "/v1/models/{model:path}",
    tags=["sight"],
    responses={**_NEEDS_KEY, 404: {"model": ErrorAnswer}},
    dependencies=[Bearer],
)
async def model(request: Request, model: str, _: CallerDep) -> ModelCard:
    """Return one of them."""
    for card in await sight_of(request).models():
        if card.id == model:
            return card
    words = f"The model {model!r} does not exist."
    raise Refused(404, words, kind="not_found_error", code="model_not_found")


@routes.get(
    "/metrics",
    tags=["sight"],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **_NEEDS_KEY,
    },
    dependencies=[Bearer],
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Return Prometheus' text. From this machine without a key, else with the scope admin."""
    if not is_loopback(source_of(request)) or "x-forwarded-for" in request.headers:
        await admin(request)

    async def pieces() -> AsyncIterator[str]:
        demand = services.pool.demand()
        for piece in exposition(services.meters, services.pool.replicas, demand):
            yield piece
            await asyncio.sleep(0)  # a thousand replicas take milliseconds: requests come first

    return StreamingResponse(pieces(), media_type=CONTENT_TYPE)


async def _serve_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    if isinstance(error, Refused):
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return _answer(error.status, str(error), error.kind, error.code, headers=headers)
    status, kind, code = next(_STATUSES[base] for base in type(error).__mro__ if base in _STATUSES)
    headers = {"retry-after": "1"} if status == 503 else {}
    return _answer(status, str(error), kind, code, headers=headers)


async def _bad_reference(_: Request, error: Exception) -> Response:
    return _answer(400, str(error))


async def _invalid(_: Request, error: Exception) -> Response:
    """Say what is wrong with a body, and never what was in it: that may be a secret."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"])
    return _answer(400, f"{place}: {found['msg']}", param=place)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = str(error.detail)
    if error.status_code == 404:
        words = f"There is nothing at {request.url.path}."
    kind = _KINDS.get(error.status_code, "invalid_request_error")
    return _answer(error.status_code, words, kind, headers=dict(error.headers or {}))


async def _internal(_: Request, __: Exception) -> Response:
    return _answer(500, "Internal error; the gateway's log says more.", "api_error")


def _answer(
    status: int,
    words: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    body = wire.error_object(words, status=status, kind=kind, code=code, param=param)
    return JSONResponse(body, status_code=status, headers=headers)
