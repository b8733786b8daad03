"""Who may use the control plane: keys and sessions, scopes, and the tricks that browsers fall for.

A key in an Authorization header speaks for itself. A cookie is sent by a browser whoever made the
page, so what changes something must come from our own page. While there is no key at all, only
pages that were really loaded from this machine may ask.
"""

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from serve.accounts.limits import Account, Denied
from serve.config import is_loopback
from serve.errors import ServeError
from serve.front.control.services import Services
from serve.wire import Scope

COOKIE = "palaestra_session"

_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key, `ak_...`. Not needed while the gateway has no key at all.",
)


class Refused(ServeError):
    """A request that is answered with an error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code = status, kind, code
        self.retry_after = retry_after

    @classmethod
    def because(cls, denied: Denied) -> "Refused":
        """Pass on what the accounts say."""
        return cls(
            denied.status,
            denied.message,
            kind=denied.kind,
            code=denied.code,
            retry_after=denied.retry_after,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever asks, as the audit log has it, and what they may do."""

    actor: str
    grants: frozenset[Scope]


def services_of(request: Request) -> Services:
    """Return what the application works on."""
    services: Services = request.app.state.services
    return services


def source_of(request: Request) -> str:
    """Return the address that a request came from."""
    return request.client.host if request.client is not None else ""


async def caller(request: Request) -> Caller:
    """Return who asks; raise Refused."""
    auth = services_of(request).auth
    text = request.headers.get("authorization")
    header = None if text is None else text.encode("latin-1")
    token = request.cookies.get(COOKIE)
    if header is None and token is not None and not auth.open:
        session = auth.sessions.find(token)
        if session is None:
            raise Refused(401, "The session has ended; log in again.", kind="authentication_error")
        ensure_same_origin(request, needs_proof=True)
        return Caller(actor=session.actor, grants=session.grants)
    account = auth.known(header)
    if account is None:
        verdict = await auth.verify(header, source_of(request))
        if isinstance(verdict, Denied):
            raise Refused.because(verdict)
        account = verdict
    if auth.open:
        ensure_local(request)
        ensure_same_origin(request)
    return _caller(account)


def needing(scope: Scope) -> Any:  # noqa: ANN401  # FastAPI's
    """Return the dependency that admits callers with this scope and gives the `Caller`."""

    async def asking(request: Request) -> Caller:
        found = await caller(request)
        if scope not in found.grants:
            raise Refused(
                403,
                f"This needs a key with the scope {scope.value}.",
                kind="permission_error",
                code="insufficient_scope",
            )
        return found

    return Depends(asking)


async def admin(request: Request) -> Caller:
    """Return who asks, if they may do everything; raise Refused."""
    asking = await caller(request)
    if Scope.ADMIN not in asking.grants:
        raise Refused(
            403,
            "This needs a key with the scope admin.",
            kind="permission_error",
            code="insufficient_scope",
        )
    return asking


def ensure_same_origin(request: Request, *, needs_proof: bool = False) -> None:
    """Refuse what changes something and comes from another site's page.

    `needs_proof` refuses also those that do not say where they come from: no browser does that.
    """
    if request.method in _SAFE_METHODS:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is None and origin is None:
        is_ours = not needs_proof
    else:
        is_ours = site in (None, "same-origin", "none") and (
            origin is None or urlsplit(origin).netloc == request.headers.get("host")
        )
    if not is_ours:
        raise Refused(
            403,
            "This did not come from a page of this gateway.",
            kind="permission_error",
            code="cross_origin",
        )


def ensure_local(request: Request) -> None:
    """Refuse a foreign name for this machine: its page would count as ours (DNS rebinding)."""
    if services_of(request).trusts_edge:
        return
    if not is_loopback(_hostname(request.headers.get("host", ""))):
        raise Refused(
            403,
            "Without a key this gateway answers only as localhost; create one with "
            "`python -m serve keys create --scope admin`.",
            kind="permission_error",
            code="not_local",
        )


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _caller(account: Account) -> Caller:
    is_key = account.id != "anonymous"
    return Caller(actor=f"key:{account.id}" if is_key else "anonymous", grants=account.grants)


ServicesDep = Annotated[Services, Depends(services_of)]
CallerDep = Annotated[Caller, Depends(caller)]
AdminDep = Annotated[Caller, Depends(admin)]
Bearer = Depends(_bearer)
"""Says in the OpenAPI document that a route wants a key."""
