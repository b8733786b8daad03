"""The database below the store: its tables, how it is opened, and which format it has.

SQLite in the state folder unless a URL says otherwise. The format is written inside, so that a
database of a later version is recognised and left alone.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from serve.errors import ConfigError, StateError

FORMAT = "state/1"
_BUSY_S = 5.0
"""How long SQLite waits for another process that writes."""

_metadata = MetaData()

meta = Table(
    "state_meta",
    _metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(64), nullable=False),
)
"""`format`; and `epoch`, which every change of a key or a user raises."""

api_keys = Table(
    "api_keys",
    _metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("concurrency", BigInteger),
    Column("budget_tokens", BigInteger),
    Column("hash", String(256), nullable=False),
    Column("created_s", Float(53), nullable=False),
    Column("changed_s", Float(53), nullable=False),
    Column("revoked_s", Float(53)),
    Column("last_used_s", Float(53)),
)

users = Table(
    "users",
    _metadata,
    Column("name", String(64), primary_key=True),
    Column("scopes", String(64), nullable=False),
    Column("hash", String(256), nullable=False),
    Column("created_s", Float(53), nullable=False),
    Column("changed_s", Float(53), nullable=False),
)

usage = Table(
    "usage",
    _metadata,
    Column("hour_s", BigInteger, primary_key=True),
    Column("key_id", String(16), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("estimated_tokens", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    _metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time_s", Float(53), nullable=False),
    Column("actor", String(96), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(256), nullable=False),
    Column("detail", Text, nullable=False),
)


class Database:
    """An open database of ours. Threads may share it; every error comes out as StateError."""

    def __init__(self, url: URL, *, busy_s: float = _BUSY_S) -> None:
        self.place = url.render_as_string(hide_password=True)
        self._engine = _engine(url, busy_s)
        self._writing = self._engine.execution_options(writes=True)
        try:
            with self.read() as connection:
                is_new = not inspect(connection).has_table(meta.name)
            if is_new:
                self._make()
            self._check_format()
        except BaseException:  # raised again: nobody else could close what was opened
            self._engine.dispose()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Lend a connection on one consistent state."""
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Lend a connection that alone may write; commit at the end, or nothing at all."""
        with self._translated(), self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def _make(self) -> None:
        """Make the tables, unless another process has just done so."""
        with self.write() as connection:
            if not inspect(connection).has_table(meta.name):
                _metadata.create_all(connection, checkfirst=False)
                rows = [{"name": "format", "value": FORMAT}, {"name": "epoch", "value": "0"}]
                connection.execute(meta.insert(), rows)

    def _check_format(self) -> None:
        with self.read() as connection:
            found = connection.scalar(select(meta.c.value).where(meta.c.name == "format"))
        if found != FORMAT:
            raise StateError(
                f"{self.place}: its format is {found}, this version of serve reads {FORMAT}. "
                "Use the version that wrote it, or another state folder"
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = getattr(error, "orig", None) or error
            raise StateError(
                f"{self.place}: the state cannot be read or written ({reason})"
            ) from error


def locate(state_dir: Path, url: str | None = None) -> URL:
    """Return where the database is: `url`, else `state.db` in the folder, which is then made.

    What is made is readable by its owner only.
    """
    if url is not None:
        return _parsed(url)
    path = state_dir.expanduser().resolve() / "state.db"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StateError(f"{path}: the state cannot be kept there ({error.strerror})") from error
    return URL.create("sqlite", database=str(path))


def _parsed(text: str) -> URL:
    try:
        url = make_url(text)
        url.get_dialect().import_dbapi()
    except ArgumentError as error:
        raise ConfigError(
            "expected a database URL such as postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        ) from error
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigError(f"no driver is installed for that database URL ({error})") from error
    if url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}:
        raise ConfigError("a database in memory dies with its process; give a file or a server")
    return url


def _engine(url: URL, busy_s: float) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, hide_parameters=True)
    engine = create_engine(url, connect_args={"timeout": busy_s}, hide_parameters=True)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # _begin alone opens transactions
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Take the write lock at once where it will be needed: a later upgrade could not wait."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
