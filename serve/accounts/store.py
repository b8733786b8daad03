"""What must outlive the process: keys, users, usage and the audit log.

Every call is one transaction and may take milliseconds: never on an event loop. A change of a key
or a user is audited in the transaction that makes it. Secrets come in and are never kept.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

from sqlalchemy import Connection, Integer, RowMapping, Update, bindparam, cast, func, or_, select

from serve.accounts import database as db
from serve.accounts.limits import Limits
from serve.accounts.passwords import hash_key, hash_password, id_of, new_key
from serve.accounts.records import AuditEntry, KeyInfo, Snapshot, Usage, UserInfo
from serve.errors import ConfigError, StateError
from serve.wire import Scope

_MAX_NAME = 64
_MAX_DETAIL = 2_000
_LAST_USED_STEP_S = 60.0
_USAGE_COUNTS = ("requests", "prompt_tokens", "completion_tokens", "estimated_tokens")
_EPOCH = select(db.meta.c.value).where(db.meta.c.name == "epoch")


class AccountStore:
    """The one door to the database. Threads may share it; errors are StateError or ConfigError.

    `actor` is who does it, for the audit log: `key:ID`, `user:NAME` or `cli:NAME`.
    """

    def __init__(self, database: db.Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    def open(
        cls, state_dir: Path, *, url: str | None = None, clock: Callable[[], float] = time.time
    ) -> Self:
        """Open `state_dir/state.db`, or the database of an SQLAlchemy URL; make what is missing."""
        return cls(db.Database(db.locate(state_dir, url)), clock=clock)

    @property
    def place(self) -> str:
        """The database's URL, without a password."""
        return self._database.place

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def epoch(self) -> int:
        """Return a number that every change of a key or a user raises, in whatever process."""
        with self._database.read() as connection:
            return _epoch(connection)

    def snapshot(self) -> Snapshot:
        """Return all that deciding about a request needs, as of one moment."""
        tokens = func.sum(db.usage.c.prompt_tokens + db.usage.c.completion_tokens)
        used = select(db.usage.c.key_id, tokens).group_by(db.usage.c.key_id)
        with self._database.read() as connection:
            rows = connection.execute(select(db.api_keys)).mappings().all()
            return Snapshot(
                epoch=_epoch(connection),
                keys=tuple(_key(row) for row in rows),
                hashes={row["id"]: row["hash"] for row in rows},
                users=tuple(map(_user, connection.execute(select(db.users)).mappings())),
                used_tokens={key_id: int(total) for key_id, total in connection.execute(used)},
            )

    def create_key(
        self,
        name: str,
        scopes: Iterable[Scope],
        limits: Limits,
        *,
        actor: str,
        key: str | None = None,
    ) -> tuple[KeyInfo, str]:
        """Make a key, or take one that was made elsewhere. Return it, and its text.

        Nobody can ever read the text again.
        """
        key, now_s = key or new_key(), self._clock()
        key_id, words = id_of(key), _words(scopes)
        row = {
            "id": key_id,
            "name": _checked(name),
            "scopes": words,
            "rpm": limits.rpm,
            "tpm": limits.tpm,
            "concurrency": limits.concurrency,
            "budget_tokens": limits.budget_tokens,
            "hash": hash_key(key),
            "created_s": now_s,
            "changed_s": now_s,
        }
        with self._database.write() as connection:
            connection.execute(db.api_keys.insert(), row)
            self._changed(connection, actor, "key.create", key_id, f"{name}: {words}, {limits}")
            return _key(_the_key(connection, key_id)), key

    def keys(self) -> list[KeyInfo]:
        """Return all keys, revoked ones too, in the order of their making."""
        query = select(db.api_keys).order_by(db.api_keys.c.created_s, db.api_keys.c.id)
        with self._database.read() as connection:
            return [_key(row) for row in connection.execute(query).mappings()]

    def revoke(self, key_id: str, *, actor: str) -> KeyInfo:
        """End a key for good; ending it twice changes nothing. ConfigError if there is none."""
        with self._database.write() as connection:
            found = _key(_the_key(connection, key_id))
            if found.revoked_s is not None:
                return found
            connection.execute(_of_key(found.id).values(revoked_s=self._clock()))
            self._changed(connection, actor, "key.revoke", found.id, found.name)
            return _key(_the_key(connection, found.id))

    def rotate(self, key_id: str, *, actor: str) -> str:
        """Give a key a new secret and return its new text; the old one is dead at once.

        Id, limits and usage stay. ConfigError if there is no such key or it is revoked.
        """
        key = new_key(id_of(key_id))
        hashed = hash_key(key)
        with self._database.write() as connection:
            found = _key(_the_key(connection, key_id))
            if found.revoked_s is not None:
                raise ConfigError(f"{found.id} is revoked for good; create a new key")
            connection.execute(_of_key(found.id).values(hash=hashed, changed_s=self._clock()))
            self._changed(connection, actor, "key.rotate", found.id, found.name)
        return key

    def set_password(
        self, user: str, password: str, scopes: Iterable[Scope], *, actor: str
    ) -> UserInfo:
        """Make a user, or replace the password and the scopes of one."""
        if not user:
            raise ConfigError("a user needs a name")
        now_s = self._clock()
        values = {
            "scopes": _words(scopes),
            "hash": hash_password(password),
            "changed_s": now_s,
        }
        with self._database.write() as connection:
            its = db.users.c.name == _checked(user)
            if not connection.execute(db.users.update().where(its), values).rowcount:
                row = {"name": user, "created_s": now_s, **values}
                connection.execute(db.users.insert(), row)
            self._changed(connection, actor, "user.set", user, str(values["scopes"]))
            return _user(connection.execute(select(db.users).where(its)).mappings().one())

    def users(self) -> list[UserInfo]:
        """Return all users by name."""
        with self._database.read() as connection:
            query = select(db.users).order_by(db.users.c.name)
            return [_user(row) for row in connection.execute(query).mappings()]

    def remove_user(self, user: str, *, actor: str) -> None:
        """Remove a user; ConfigError if there is none of that name."""
        with self._database.write() as connection:
            its = db.users.c.name == user
            if not connection.execute(db.users.delete().where(its)).rowcount:
                raise ConfigError(f"there is no user {user!r}")
            self._changed(connection, actor, "user.remove", user, "")

    def password_hash(self, user: str) -> tuple[UserInfo, str] | None:
        """Return a user and what is stored of the password."""
        with self._database.read() as connection:
            query = select(db.users).where(db.users.c.name == user)
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else (_user(row), row["hash"])

    def add_usage(self, rows: Sequence[Usage]) -> None:
        """Add these counts to what is there, all of them or, if it raises, none.

        No two of them may be of the same hour, key and model.
        """
        if not rows:
            return
        table = db.usage
        key = (table.c.hour_s, table.c.key_id, table.c.model)
        more = {table.c[name]: table.c[name] + bindparam(f"more_{name}") for name in _USAGE_COUNTS}
        update = table.update().where(*(one == bindparam(f"its_{one.name}") for one in key))
        near = select(*key).where(
            table.c.hour_s.in_({row.hour_s for row in rows}),
            table.c.key_id.in_({row.key_id for row in rows}),
        )
        with self._database.write() as connection:
            there = {(hour_s, id_, model) for hour_s, id_, model in connection.execute(near)}
            old = [row for row in rows if (row.hour_s, row.key_id, row.model) in there]
            new = [row for row in rows if (row.hour_s, row.key_id, row.model) not in there]
            if old:
                connection.execute(update.values(more), [_more(row) for row in old])
            if new:
                connection.execute(table.insert(), [asdict(row) for row in new])
            self._used(connection, {row.key_id for row in rows})

    def usage(self, since_s: float = 0.0) -> list[Usage]:
        """Return what was used in the hours that had not ended at `since_s`, oldest first."""
        table = db.usage
        query = (
            select(table)
            .where(table.c.hour_s > int(since_s) - 3600)
            .order_by(table.c.hour_s, table.c.key_id, table.c.model)
        )
        with self._database.read() as connection:
            return [Usage(**row) for row in connection.execute(query).mappings()]

    def audit(self, actor: str, action: str, target: str, detail: str = "") -> None:
        """Note an administrative action that is not one of this store's own."""
        with self._database.write() as connection:
            self._note(connection, actor, action, target, detail)

    def audit_log(self, limit: int = 100) -> list[AuditEntry]:
        """Return the newest actions, the newest first."""
        table = db.audit
        columns = [table.c[name] for name in ("time_s", "actor", "action", "target", "detail")]
        query = select(*columns).order_by(table.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return [AuditEntry(**row) for row in connection.execute(query).mappings()]

    def _used(self, connection: Connection, key_ids: set[str]) -> None:
        now_s = self._clock()
        its = db.api_keys.c
        is_old = or_(its.last_used_s.is_(None), its.last_used_s < now_s - _LAST_USED_STEP_S)
        update = db.api_keys.update().where(its.id == bindparam("its_id"), is_old)
        connection.execute(
            update.values(last_used_s=now_s), [{"its_id": key_id} for key_id in key_ids]
        )

    def _changed(
        self, connection: Connection, actor: str, action: str, target: str, detail: str
    ) -> None:
        """Audit a change, and raise the epoch so that every gateway sees it."""
        raised = cast(cast(db.meta.c.value, Integer) + 1, db.meta.c.value.type)
        connection.execute(db.meta.update().where(db.meta.c.name == "epoch").values(value=raised))
        self._note(connection, actor, action, target, detail)

    def _note(
        self, connection: Connection, actor: str, action: str, target: str, detail: str
    ) -> None:
        row = {
            "time_s": self._clock(),
            "actor": actor[:96],
            "action": action[:64],
            "target": target[:256],
            "detail": detail[:_MAX_DETAIL],
        }
        connection.execute(db.audit.insert(), row)


def _epoch(connection: Connection) -> int:
    return int(connection.scalar(_EPOCH) or 0)


def _more(row: Usage) -> dict[str, str | int]:
    """Return the parameters that add a row to the one that is there."""
    its = {f"its_{name}": getattr(row, name) for name in ("hour_s", "key_id", "model")}
    return its | {f"more_{name}": getattr(row, name) for name in _USAGE_COUNTS}


def _the_key(connection: Connection, key_id: str) -> RowMapping:
    query = select(db.api_keys).where(db.api_keys.c.id == id_of(key_id))
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise ConfigError(f"there is no key {id_of(key_id)}; `keys list` shows all")
    return row


def _of_key(key_id: str) -> Update:
    return db.api_keys.update().where(db.api_keys.c.id == key_id)


def _key(row: RowMapping) -> KeyInfo:
    names = ("rpm", "tpm", "concurrency", "budget_tokens")
    return KeyInfo(
        id=row["id"],
        name=row["name"],
        scopes=_scopes(row["scopes"]),
        limits=Limits(**{name: row[name] for name in names}),
        created_s=row["created_s"],
        changed_s=row["changed_s"],
        revoked_s=row["revoked_s"],
        last_used_s=row["last_used_s"],
    )


def _user(row: RowMapping) -> UserInfo:
    return UserInfo(
        name=row["name"],
        scopes=_scopes(row["scopes"]),
        created_s=row["created_s"],
        changed_s=row["changed_s"],
    )


def _words(scopes: Iterable[Scope]) -> str:
    wanted = set(scopes)
    if not wanted:
        raise ConfigError(f"expected one scope or more of {', '.join(Scope)}")
    return ",".join(scope for scope in Scope if scope in wanted)


def _scopes(words: str) -> frozenset[Scope]:
    try:
        return frozenset(map(Scope, words.split(",")))
    except ValueError as error:
        raise StateError(f"the state names a scope that does not exist ({error})") from error


def _checked(name: str) -> str:
    """Return a name that can be shown anywhere, or raise ConfigError."""
    if len(name) > _MAX_NAME or not name.isprintable():
        raise ConfigError(f"a name is at most {_MAX_NAME} printable characters, got {name!r}")
    return name
