"""Who sends a request: from the value of its Authorization header, or from a login. Off the disk.

A key is proven once, by Argon2id in a thread, and known from then on. Changes that other processes
make are seen by looking at the store four times a second. Whoever guesses pays: without a key of
that id no Argon2 runs, and after too many failures there is a wait. Ids are no secret, so it does
not matter that an unknown one is refused faster.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from serve.accounts.backoff import Backoff
from serve.accounts.keyring import Keyring
from serve.accounts.limits import Account, Denied
from serve.accounts.passwords import NOBODY, bearer, id_of, matches
from serve.accounts.records import Snapshot, UserInfo
from serve.accounts.sessions import Session, Sessions
from serve.errors import StateError

logger = logging.getLogger(__name__)

_MAX_CHECKS = 64
"""Secrets that may wait for Argon2 at once: under a second's worth."""
_LOOK_S = 0.02
"""How often, at most, an unknown key makes us look at the store."""

_MISSING = Denied(
    message="There is no API key in the request. Send one as `Authorization: Bearer ak_...`.",
    code="invalid_api_key",
    kind="invalid_request_error",
    status=401,
)
_WRONG = Denied(
    message="The API key is wrong, or it was revoked or rotated.",
    code="invalid_api_key",
    kind="invalid_request_error",
    status=401,
)
_WRONG_LOGIN = Denied(
    message="The name or the password is wrong.",
    code="invalid_login",
    kind="invalid_request_error",
    status=401,
)
_BUSY = Denied(
    message="Too many new keys and passwords are being checked. Try again in a second.",
    code="rate_limit_exceeded",
    kind="requests",
    retry_after_s=1.0,
)


class KeySource(Protocol):
    """Where keys and users come from; an AccountStore is one. Called in threads only."""

    def epoch(self) -> int:
        """Return a number that every change raises."""

    def snapshot(self) -> Snapshot:
        """Return everything as of one moment."""

    def password_hash(self, user: str) -> tuple[UserInfo, str] | None:
        """Return a user and what is stored of the password."""


class Auth:
    """The keys of this moment. `start` and `stop` it on the event loop that asks.

    While the store cannot be read, what was last seen stays valid.
    """

    def __init__(
        self,
        source: KeySource,
        *,
        poll_s: float = 0.25,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._poll_s = poll_s
        self._backoff = Backoff() if backoff is None else backoff
        self._clock = clock
        self._keyring = Keyring()
        self.known = self._keyring.known
        """`known(header) -> Account | None`: on the way of every request, 0.3 us, no waiting.

        None: ask `verify`. While it is `open`, everybody is `anonymous`.
        """
        self.anonymous = self._keyring.anonymous
        self.sessions = Sessions()
        self.is_failing = False
        """Whether the store could not be read the last time."""
        self._epoch: int | None = None
        self._checks: dict[bytes, asyncio.Task[Account | None]] = {}
        self._logins = 0
        self._argon2 = ThreadPoolExecutor(2, thread_name_prefix="argon2")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._pending: set[asyncio.Task[Any]] = set()
        self._next_look: asyncio.Task[None] | None = None
        self._is_stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """Whether neither a key (revoked ones count) nor a user exists: everybody may do anything.

        A gateway that is open must listen on loopback only.
        """
        return self._keyring.is_open

    @property
    def accounts(self) -> dict[str, Account]:
        """The accounts of all keys that are not revoked, by id."""
        return self._keyring.accounts

    async def start(self) -> None:
        """Read all keys, then watch for changes; raise StateError if they cannot be read."""
        await self.reload()
        self._task = asyncio.create_task(self._watch(), name="keys")

    async def stop(self) -> None:
        """End the watch and every check."""
        self._is_stopping.set()
        if self._task is not None:
            await self._task
        self._argon2.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*self._pending, return_exceptions=True)
        self._reader.shutdown()

    async def reload(self) -> None:
        """See at once what this process itself changed; raise StateError if that fails."""
        loop = asyncio.get_running_loop()
        snapshot = await loop.run_in_executor(self._reader, self._source.snapshot)
        self._keyring.apply(snapshot)
        self.sessions.keep(self._keyring.changed_s)
        self._epoch = snapshot.epoch

    async def verify(self, header: bytes | None, source: str) -> Account | Denied:
        """Prove a header that is not known; `source` is the address that it came from.

        Many at once with one header share one check. A caller may be cancelled; the check goes on.
        """
        account = self.known(header)
        if account is not None:
            return account
        if header is None:
            return _MISSING
        wait_s = self._backoff.wait_s(source, self._clock())
        if wait_s > 0:
            return _too_many_failures(wait_s)
        found = await self._checked(header)
        if found is None:
            self._backoff.failed(source, self._clock())
            return _WRONG
        return found

    async def login(self, user: str, password: str, source: str) -> tuple[str, Session] | Denied:
        """Begin a session for a user: its token, for a cookie, and the session."""
        wait_s = self._backoff.wait_s(source, self._clock())
        if wait_s > 0:
            return _too_many_failures(wait_s)
        if self._logins >= _MAX_CHECKS // 8:
            return _BUSY
        self._logins += 1
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._argon2, self._find_user, user, password)
        finally:
            self._logins -= 1
        if found is None:
            self._backoff.failed(source, self._clock())
            return _WRONG_LOGIN
        await self.reload()
        actor = f"user:{found.name}"
        if self._keyring.changed_s.get(actor) != found.changed_s:
            return _WRONG_LOGIN
        return self.sessions.begin(actor, found.scopes, found.changed_s)

    async def login_with_key(self, key: str, source: str) -> tuple[str, Session] | Denied:
        """Begin a session for whoever has a key; it ends when the key is revoked or rotated."""
        found = await self.verify(f"Bearer {key}".encode("utf-8", "replace"), source)
        if isinstance(found, Denied):
            return found
        actor = f"key:{found.id}"
        since_s = self._keyring.changed_s.get(actor, 0.0)
        return self.sessions.begin(actor, found.scopes, since_s)

    async def _checked(self, header: bytes) -> Account | Denied | None:
        key = bearer(header)
        if key is None or self._keyring.is_wrong(header):
            return None
        stored = self._keyring.hash_of(id_of(key))
        found = None if stored is None else await self._check(header, key, stored)
        if found is not None:
            return found
        await self._look_soon()  # it may have been made or rotated since the last look
        newer = self._keyring.hash_of(id_of(key))
        if newer is None or newer == stored:
            return None
        return await self._check(header, key, newer)

    async def _check(self, header: bytes, key: str, stored: str) -> Account | Denied | None:
        check = self._checks.get(header)
        if check is None:
            if len(self._checks) >= _MAX_CHECKS:
                return _BUSY
            check = asyncio.create_task(self._prove(header, key, stored))
            self._checks[header] = check
            check.add_done_callback(lambda _: self._checks.pop(header))
            self._hold(check)
        return await asyncio.shield(check)

    async def _prove(self, header: bytes, key: str, stored: str) -> Account | None:
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(self._argon2, matches, stored, key):
            return self._keyring.proven(header, id_of(key), stored)
        self._keyring.disproven(header, stored)
        return None

    def _find_user(self, user: str, password: str) -> UserInfo | None:
        """Take as long for a name that does not exist as for one that does."""
        found = self._source.password_hash(user)
        if not matches(NOBODY if found is None else found[1], password) or found is None:
            return None
        return found[0]

    async def _watch(self) -> None:
        while not self._is_stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._is_stopping.wait()
            await self._look()

    async def _look(self) -> None:
        """Reload if another process changed something; what was seen last stays if that fails."""
        loop = asyncio.get_running_loop()
        try:
            epoch = await loop.run_in_executor(self._reader, self._source.epoch)
            if epoch != self._epoch:
                await self.reload()
        except StateError as error:
            if not self.is_failing:
                logger.warning("keys cannot be read, the last ones stay valid: %s", error)
            self.is_failing = True
        else:
            self.is_failing = False

    async def _look_soon(self) -> None:
        """Look once for all that wait, at most each `_LOOK_S`: a flood of guesses costs nothing.

        Whoever comes after the look has begun waits for the next one.
        """
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look_later(), name="keys-look")
            self._hold(self._next_look)
        await asyncio.shield(self._next_look)

    def _hold(self, task: asyncio.Task[Any]) -> None:
        """Let `stop` wait for a task that outlives its caller."""
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _look_later(self) -> None:
        await asyncio.sleep(_LOOK_S)
        self._next_look = None
        await self._look()


def _too_many_failures(wait_s: float) -> Denied:
    return Denied(
        message=f"Too many wrong keys came from this address. Try again in {wait_s:.3g} s.",
        code="rate_limit_exceeded",
        kind="requests",
        retry_after_s=wait_s,
    )
