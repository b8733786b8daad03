import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve.accounts.auth import Auth
from serve.accounts.backoff import Backoff
from serve.accounts.ledger import Ledger
from serve.accounts.limits import Account, Denied, Limits
from serve.accounts.passwords import new_key
from serve.accounts.records import Snapshot
from serve.accounts.sessions import Session
from serve.accounts.store import AccountStore
from serve.errors import StateError
from serve.wire import Scope

PASSWORD = "correct horse battery"
NO_KEYS = Snapshot(epoch=0, keys=(), hashes={}, users=(), used_tokens={})


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def created(store: AccountStore, scope: Scope = Scope.INFER) -> tuple[str, str]:
    """Make a key; return its id and the key."""
    key, text = store.create_key("ann", [scope], Limits(), actor="cli:me")
    return key.id, text


@asynccontextmanager
async def started(
    store: AccountStore, *, poll_s: float = 0.05, backoff: Backoff | None = None
) -> AsyncIterator[Auth]:
    auth = Auth(store, poll_s=poll_s, backoff=backoff)
    await auth.start()
    try:
        yield auth
    finally:
        await auth.stop()


def run(store: AccountStore, play: Callable[[Auth], Coroutine[Any, Any, None]]) -> None:
    async def played() -> None:
        async with started(store) as auth:
            await play(auth)

    asyncio.run(played())


async def until(holds: Callable[[], bool], *, within_s: float) -> float:
    """Wait until it holds; return how long that took."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < within_s
        await asyncio.sleep(0.005)
    return time.monotonic() - start


def test_a_key_is_proven_once_and_then_known(store: AccountStore) -> None:
    key_id, key = created(store)

    async def play(auth: Auth) -> None:
        assert auth.known(bearer(key)) is None
        account = await auth.verify(bearer(key), "1.2.3.4")
        assert isinstance(account, Account)
        assert account.id == key_id
        assert auth.known(bearer(key)) is account is auth.accounts[key_id]
        assert await auth.verify(bearer(key), "1.2.3.4") is account

    run(store, play)


def test_what_was_used_before_counts(store: AccountStore) -> None:
    key_id, _ = created(store)

    async def play(auth: Auth) -> None:
        ledger = Ledger(store)
        ledger.add(key_id, "m", 30, 12, False)
        await ledger.stop()

    run(store, play)

    async def later(auth: Auth) -> None:
        assert auth.accounts[key_id].used_tokens == 42

    run(store, later)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "There is no API key"),
        (b"", "The API key is wrong"),
        (b"Bearer none", "The API key is wrong"),
        (b"Basic YTpi", "The API key is wrong"),
        (bearer(new_key()), "The API key is wrong"),
        (b"\xff" * 10_000, "The API key is wrong"),
    ],
    ids=["none", "empty", "foreign", "basic", "unknown", "garbage"],
)
def test_everything_else_is_refused(
    store: AccountStore, header: bytes | None, message: str, argon2_threads: list[str]
) -> None:
    created(store)

    async def play(auth: Auth) -> None:
        argon2_threads.clear()
        denied = await auth.verify(header, "1.2.3.4")
        assert isinstance(denied, Denied)
        assert (denied.status, denied.code, denied.retry_after) == (401, "invalid_api_key", None)
        assert denied.message.startswith(message)

    run(store, play)
    assert argon2_threads == []


def test_argon2_runs_in_its_threads_and_once_for_many(
    store: AccountStore, argon2_threads: list[str]
) -> None:
    key_id, key = created(store)
    wrong = bearer(new_key(key_id))

    async def play(auth: Auth) -> None:
        found = await asyncio.gather(*(auth.verify(bearer(key), "a") for _ in range(100)))
        assert found == [auth.accounts[key_id]] * 100
        assert len(argon2_threads) == 1
        refused = await asyncio.gather(*(auth.verify(wrong, str(n)) for n in range(100)))
        assert {denied.status for denied in refused if isinstance(denied, Denied)} == {401}
        await auth.verify(wrong, "again")
        assert len(argon2_threads) == 2

    run(store, play)
    assert all(name.startswith("argon2_") for name in argon2_threads)


def test_a_caller_that_leaves_does_not_end_the_check_of_the_others(store: AccountStore) -> None:
    _, key = created(store)

    async def play(auth: Auth) -> None:
        first = asyncio.create_task(auth.verify(bearer(key), "a"))
        second = asyncio.create_task(auth.verify(bearer(key), "a"))
        await asyncio.sleep(0)
        first.cancel()
        assert isinstance(await second, Account)
        assert first.cancelled()

    run(store, play)


def test_too_many_checks_at_once_are_told_to_wait(store: AccountStore) -> None:
    key_id, _ = created(store)

    async def play(auth: Auth) -> None:
        headers = [bearer(new_key(key_id)) for _ in range(80)]
        refused = await asyncio.gather(*(auth.verify(one, one.decode()) for one in headers))
        statuses = [denied.status for denied in refused if isinstance(denied, Denied)]
        assert (statuses.count(401), statuses.count(429)) == (64, 16)
        assert {one.retry_after for one in refused if isinstance(one, Denied)} == {None, 1}

    run(store, play)


def test_who_guesses_waits_and_who_is_known_does_not(store: AccountStore) -> None:
    key_id, key = created(store)

    async def play() -> None:
        async with started(store, backoff=Backoff(burst=3, every_s=50)) as auth:
            account = await auth.verify(bearer(key), "evil")
            for _ in range(3):
                denied = await auth.verify(bearer(new_key(key_id)), "evil")
                assert isinstance(denied, Denied)
                assert denied.status == 401
            denied = await auth.verify(bearer(new_key(key_id)), "evil")
            assert isinstance(denied, Denied)
            assert (denied.status, denied.code) == (429, "rate_limit_exceeded")
            assert denied.retry_after == 50
            assert await auth.verify(bearer(key), "evil") is account
            assert isinstance(await auth.verify(bearer(new_key(key_id)), "good"), Denied)

    asyncio.run(play())


@pytest.mark.parametrize("sources", [1, 10_000])
def test_ten_thousand_wrong_keys_cost_little(store: AccountStore, sources: int) -> None:
    """0.05 s of CPU from one source, 0.1 s from as many as keys, where this was written."""
    created(store)

    async def cost_s(auth: Auth) -> float:
        headers = [bearer(new_key()) for _ in range(10_000)]
        start_s = time.process_time()
        for at in range(0, 10_000, 500):
            batch = enumerate(headers[at : at + 500], at)
            refused = [auth.verify(header, str(number % sources)) for number, header in batch]
            assert not any(isinstance(one, Account) for one in await asyncio.gather(*refused))
        return time.process_time() - start_s

    async def play(auth: Auth) -> None:
        # The cheapest of three: what other threads of this process do meanwhile is counted too.
        assert min([await cost_s(auth) for _ in range(3)]) < 1

    run(store, play)


def test_a_key_works_at_once_whoever_made_it(store: AccountStore) -> None:
    created(store)

    async def play() -> None:
        async with started(store, poll_s=60) as auth:
            key_id, key = await asyncio.to_thread(created, store)
            assert isinstance(await auth.verify(bearer(key), "a"), Account)
            newer = await asyncio.to_thread(store.rotate, key_id, actor="cli:me")
            assert isinstance(await auth.verify(bearer(newer), "a"), Account)
            assert auth.known(bearer(key)) is None

    asyncio.run(play())


def test_the_first_key_closes_an_open_gateway(store: AccountStore) -> None:
    async def play(auth: Auth) -> None:
        assert auth.open
        assert auth.known(None) is auth.known(b"Bearer none") is auth.anonymous
        assert await auth.verify(None, "a") is auth.anonymous
        await asyncio.to_thread(created, store)
        await until(lambda: not auth.open, within_s=1)
        assert auth.known(None) is None
        assert isinstance(await auth.verify(b"Bearer none", "a"), Denied)

    run(store, play)


@pytest.mark.parametrize("action", ["revoke", "rotate"])
def test_another_process_ends_a_key_within_a_second(
    store: AccountStore, tmp_path: Path, action: str
) -> None:
    key_id, key = created(store)
    program = (
        "import sys; from pathlib import Path; from serve.accounts.store import AccountStore\n"
        f"AccountStore.open(Path(sys.argv[1])).{action}(sys.argv[2], actor='cli:other')\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "state"), key_id]

    async def play() -> None:
        async with started(store, poll_s=0.25) as auth:
            await auth.verify(bearer(key), "a")
            process = await asyncio.create_subprocess_exec(*argv)
            assert await process.wait() == 0
            await until(lambda: auth.known(bearer(key)) is None, within_s=1)
            denied = await auth.verify(bearer(key), "a")
            assert isinstance(denied, Denied)
            assert denied.status == 401

    asyncio.run(play())


def test_own_changes_are_seen_at_once(store: AccountStore) -> None:
    key_id, key = created(store)

    async def play() -> None:
        async with started(store, poll_s=60) as auth:
            await auth.verify(bearer(key), "a")
            store.revoke(key_id, actor="user:ann")
            await auth.reload()
            assert auth.known(bearer(key)) is None
            assert auth.accounts == {}

    asyncio.run(play())


def test_people_log_in(store: AccountStore, argon2_threads: list[str]) -> None:
    store.set_password("ann", PASSWORD, [Scope.ADMIN], actor="cli:me")

    async def play(auth: Auth) -> None:
        argon2_threads.clear()
        found = await auth.login("ann", PASSWORD, "a")
        assert not isinstance(found, Denied)
        token, session = found
        assert auth.sessions.find(token) is session
        assert session.actor == "user:ann"
        assert session.may(Scope.ADMIN)
        for user, password in (("ann", PASSWORD + "!"), ("bob", PASSWORD), ("", "")):
            denied = await auth.login(user, password, "a")
            assert isinstance(denied, Denied)
            assert (denied.status, denied.code) == (401, "invalid_login")
        store.set_password("ann", PASSWORD, [Scope.ADMIN], actor="cli:me")
        await until(lambda: auth.sessions.find(token) is None, within_s=1)

    run(store, play)
    assert len(argon2_threads) == 4  # also for names that do not exist
    assert all(name.startswith("argon2_") for name in argon2_threads)


def test_keys_log_in_and_their_sessions_end_with_them(store: AccountStore) -> None:
    key_id, key = created(store, Scope.ADMIN)

    async def play(auth: Auth) -> None:
        found = await auth.login_with_key(key, "a")
        assert not isinstance(found, Denied)
        token, session = found
        assert isinstance(session, Session)
        assert (session.actor, session.may(Scope.ADMIN)) == (f"key:{key_id}", True)
        assert isinstance(await auth.login_with_key("\ud800", "a"), Denied)
        await asyncio.to_thread(store.revoke, key_id, actor="cli:me")
        await until(lambda: auth.sessions.find(token) is None, within_s=1)

    run(store, play)


def test_who_guesses_passwords_waits(store: AccountStore) -> None:
    store.set_password("ann", PASSWORD, [Scope.ADMIN], actor="cli:me")

    async def play() -> None:
        async with started(store, backoff=Backoff(burst=1, every_s=50)) as auth:
            statuses = []
            for password in ("wrong", PASSWORD):
                denied = await auth.login("ann", password, "evil")
                assert isinstance(denied, Denied)
                statuses.append(denied.status)
            assert statuses == [401, 429]
            assert not isinstance(await auth.login("ann", PASSWORD, "good"), Denied)

    asyncio.run(play())


class Flaky:
    """A store that can be made unreadable."""

    def __init__(self) -> None:
        self.is_down = False

    def epoch(self) -> int:
        if self.is_down:
            raise StateError("the disk is gone")
        return 0

    def snapshot(self) -> Snapshot:
        self.epoch()
        return NO_KEYS

    def password_hash(self, user: str) -> None:
        self.epoch()


def test_an_unreadable_store_changes_nothing_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Flaky()

    async def play() -> None:
        auth = Auth(store, poll_s=0.005)
        await auth.start()
        store.is_down = True
        await until(lambda: auth.is_failing, within_s=5)
        await asyncio.sleep(0.05)
        assert auth.open
        store.is_down = False
        await until(lambda: not auth.is_failing, within_s=5)
        await auth.stop()

    asyncio.run(play())
    assert [record.getMessage() for record in caplog.records] == [
        "keys cannot be read, the last ones stay valid: the disk is gone"
    ]


def test_without_a_readable_store_it_does_not_start() -> None:
    store = Flaky()
    store.is_down = True

    async def play() -> None:
        auth = Auth(store)
        with pytest.raises(StateError, match="the disk is gone"):
            await auth.start()
        await auth.stop()

    asyncio.run(play())


def test_no_secret_is_logged_or_kept(store: AccountStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key_id, key = created(store, Scope.ADMIN)
    wrong = new_key(key_id)
    store.set_password("ann", PASSWORD, [Scope.ADMIN], actor="cli:me")

    async def play(auth: Auth) -> None:
        said = [await auth.verify(bearer(one), "a") for one in (key, wrong)]
        logins = [await auth.login("ann", PASSWORD, "a"), await auth.login_with_key(wrong, "a")]
        shown = repr((vars(auth), vars(auth._keyring), vars(auth.sessions), said, logins[1]))
        for secret in (key, wrong, PASSWORD):
            assert secret[12:] not in shown + caplog.text

    run(store, play)
