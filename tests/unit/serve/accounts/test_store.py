import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.accounts.limits import Limits
from serve.accounts.passwords import matches
from serve.accounts.records import AuditEntry, KeyInfo, Usage, UserInfo
from serve.accounts.store import AccountStore
from serve.errors import ConfigError, StateError
from serve.wire import Scope

HOUR_S = 1_800_000_000
PASSWORD = "correct horse battery"


class Clock:
    def __init__(self) -> None:
        self.now_s = float(HOUR_S)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[AccountStore]:
    opened = AccountStore.open(tmp_path, clock=clock)
    yield opened
    opened.close()


def create(store: AccountStore, name: str = "ann") -> tuple[KeyInfo, str]:
    return store.create_key(name, [Scope.EVAL, Scope.INFER], Limits(rpm=5), actor="cli:me")


def used(
    model: str = "m", *, hour_s: int = HOUR_S, key_id: str = "ak_1", requests: int = 1
) -> Usage:
    return Usage(
        hour_s=hour_s,
        key_id=key_id,
        model=model,
        requests=requests,
        prompt_tokens=10 * requests,
        completion_tokens=5 * requests,
        estimated_tokens=0,
    )


def test_a_key_is_made(store: AccountStore) -> None:
    key, text = create(store)
    assert key == KeyInfo(
        id=text[:11],
        name="ann",
        scopes=frozenset({Scope.INFER, Scope.EVAL}),
        limits=Limits(rpm=5),
        created_s=HOUR_S,
        changed_s=HOUR_S,
    )
    assert store.keys() == [key]
    assert matches(store.snapshot().hashes[key.id], text)


def test_all_limits_are_kept(store: AccountStore) -> None:
    limits = Limits(rpm=1, tpm=2, concurrency=3, budget_tokens=(1 << 62) - 1)
    key, _ = store.create_key("", Scope, limits, actor="cli:me")
    assert (key.limits, key.scopes) == (limits, frozenset(Scope))


def test_a_key_is_revoked_for_good(store: AccountStore, clock: Clock) -> None:
    key, _ = create(store)
    clock.now_s += 10
    revoked = store.revoke(key.id, actor="cli:me")
    assert revoked.revoked_s == HOUR_S + 10
    clock.now_s += 10
    assert store.revoke(key.id, actor="cli:me") == revoked
    with pytest.raises(ConfigError, match=f"{key.id} is revoked for good; create a new key"):
        store.rotate(key.id, actor="cli:me")
    assert store.keys() == [revoked]


def test_a_key_is_rotated(store: AccountStore, clock: Clock) -> None:
    key, old = create(store)
    clock.now_s += 10
    new = store.rotate(key.id, actor="cli:me")
    stored = store.snapshot().hashes[key.id]
    assert new[:11] == key.id
    assert (matches(stored, old), matches(stored, new)) == (False, True)
    (rotated,) = store.keys()
    assert (rotated.created_s, rotated.changed_s) == (HOUR_S, HOUR_S + 10)
    assert rotated.limits == key.limits


@pytest.mark.parametrize("key_id", ["ak_00000000", "nothing", ""])
def test_what_is_no_key_cannot_be_changed(store: AccountStore, key_id: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no key|expected the id of a key"):
        store.revoke(key_id, actor="cli:me")
    with pytest.raises(ConfigError, match=r"there is no key|expected the id of a key"):
        store.rotate(key_id, actor="cli:me")
    assert store.epoch() == 0


@pytest.mark.parametrize("name", ["a" * 65, "\x1b[31mred", "two\nlines"])
def test_names_can_be_shown(store: AccountStore, name: str) -> None:
    with pytest.raises(ConfigError, match="at most 64 printable characters"):
        create(store, name)
    with pytest.raises(ConfigError, match="at most 64 printable characters"):
        store.set_password(name, PASSWORD, [Scope.ADMIN], actor="cli:me")


def test_a_key_or_user_may_do_something(store: AccountStore) -> None:
    with pytest.raises(ConfigError, match="one scope or more of infer, eval, train, admin"):
        store.create_key("ann", [], Limits(), actor="cli:me")
    with pytest.raises(ConfigError, match="one scope or more"):
        store.set_password("ann", PASSWORD, [], actor="cli:me")


def test_a_user_is_made_changed_and_removed(store: AccountStore, clock: Clock) -> None:
    store.set_password("ann", PASSWORD, [Scope.INFER], actor="cli:me")
    clock.now_s += 10
    ann = store.set_password("ann", PASSWORD[::-1], [Scope.ADMIN], actor="cli:me")
    assert ann == UserInfo(
        name="ann",
        scopes=frozenset({Scope.ADMIN}),
        created_s=HOUR_S,
        changed_s=HOUR_S + 10,
    )
    found = store.password_hash("ann")
    assert found is not None
    assert found[0] == ann
    assert (matches(found[1], PASSWORD), matches(found[1], PASSWORD[::-1])) == (False, True)
    assert store.users() == [ann]
    store.remove_user("ann", actor="cli:me")
    assert store.users() == []
    assert store.password_hash("ann") is None
    with pytest.raises(ConfigError, match="there is no user 'ann'"):
        store.remove_user("ann", actor="cli:me")


def test_a_bad_password_changes_nothing(store: AccountStore) -> None:
    with pytest.raises(ConfigError, match="12 to 1024"):
        store.set_password("ann", "short", [Scope.ADMIN], actor="cli:me")
    with pytest.raises(ConfigError, match="a user needs a name"):
        store.set_password("", PASSWORD, [Scope.ADMIN], actor="cli:me")
    assert (store.users(), store.audit_log(), store.epoch()) == ([], [], 0)


def test_every_change_is_audited_and_seen(store: AccountStore) -> None:
    key, _ = create(store)
    store.rotate(key.id, actor="user:bob")
    store.revoke(key.id, actor="key:ak_00000000")
    store.revoke(key.id, actor="nobody: it changes nothing")
    store.set_password("ann", PASSWORD, [Scope.ADMIN], actor="cli:me")
    store.remove_user("ann", actor="cli:me")
    assert store.epoch() == 5
    store.audit("cli:me", "pool.scale", "3", "from 2")
    assert store.epoch() == 5
    assert [(entry.actor, entry.action, entry.target) for entry in store.audit_log()] == [
        ("cli:me", "pool.scale", "3"),
        ("cli:me", "user.remove", "ann"),
        ("cli:me", "user.set", "ann"),
        ("key:ak_00000000", "key.revoke", key.id),
        ("user:bob", "key.rotate", key.id),
        ("cli:me", "key.create", key.id),
    ]


def test_the_audit_log_is_read_from_its_end_and_bounded(store: AccountStore) -> None:
    for number in range(5):
        store.audit("cli:me", "pool.scale", str(number), "x" * 5_000)
    assert store.audit_log(2) == [
        AuditEntry(
            time_s=HOUR_S,
            actor="cli:me",
            action="pool.scale",
            target=number,
            detail="x" * 2_000,
        )
        for number in ("4", "3")
    ]


def test_usage_adds_up(store: AccountStore) -> None:
    store.add_usage([])
    store.add_usage([used(), used("n")])
    store.add_usage([used(requests=3), used(hour_s=HOUR_S + 3600), used(key_id="ak_2")])
    assert store.usage() == [
        used(requests=4),
        used("n"),
        used(key_id="ak_2"),
        used(hour_s=HOUR_S + 3600),
    ]
    assert store.usage(HOUR_S + 3600) == [used(hour_s=HOUR_S + 3600)]
    assert store.usage(HOUR_S + 3599)[0] == used(requests=4)
    assert store.snapshot().used_tokens == {"ak_1": 90, "ak_2": 15}


def test_usage_is_written_whole_or_not_at_all(store: AccountStore) -> None:
    with pytest.raises(StateError):
        store.add_usage([used(), used(model=None)])  # type: ignore[arg-type]
    assert store.usage() == []


def test_last_use_is_coarse_and_no_change(store: AccountStore, clock: Clock) -> None:
    key, _ = create(store)
    epoch, seen = store.epoch(), list[float | None]()
    for _ in range(4):
        clock.now_s += 25
        store.add_usage([used(key_id=key.id)])
        seen.append(store.keys()[0].last_used_s)
    assert seen == [HOUR_S + 25, HOUR_S + 25, HOUR_S + 25, HOUR_S + 100]
    assert store.epoch() == epoch


def test_it_is_all_there_after_a_restart(store: AccountStore, tmp_path: Path) -> None:
    create(store)
    store.set_password("ann", PASSWORD, [Scope.ADMIN], actor="cli:me")
    store.add_usage([used()])
    before = store.snapshot(), store.audit_log()
    store.close()
    again = AccountStore.open(tmp_path)
    assert (again.snapshot(), again.audit_log()) == before
    again.close()


def test_no_secret_is_in_the_files_or_in_a_repr(store: AccountStore, tmp_path: Path) -> None:
    key, text = create(store)
    store.set_password("ann", PASSWORD, [Scope.ADMIN], actor="cli:me")
    rotated = store.rotate(key.id, actor="cli:me")
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key.id.encode() in files
    shown = repr((store.snapshot(), store.keys(), store.users(), store.audit_log()))
    for secret in (text, rotated, PASSWORD):
        assert secret[12:].encode() not in files
        assert secret[12:] not in shown
    assert "argon2" not in shown


def test_a_scope_of_the_future_is_no_crash(store: AccountStore, tmp_path: Path) -> None:
    create(store)
    with sqlite3.connect(tmp_path / "state.db") as raw:
        raw.execute("UPDATE api_keys SET scopes = 'infer,fly'")
    raw.close()
    with pytest.raises(StateError, match="a scope that does not exist"):
        store.keys()
