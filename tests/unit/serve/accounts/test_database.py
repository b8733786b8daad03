import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from serve.accounts.database import Database, locate
from serve.accounts.store import AccountStore
from serve.errors import ConfigError, StateError


def test_the_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    AccountStore.open(tmp_path / "a" / "state").close()
    path = tmp_path / "a" / "state" / "state.db"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_readers_do_not_wait_for_writers(tmp_path: Path) -> None:
    AccountStore.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw.close()


def test_the_format_is_written_inside(tmp_path: Path) -> None:
    AccountStore.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as raw:
        rows = dict(raw.execute("SELECT name, value FROM state_meta"))
    raw.close()
    assert rows == {"format": "state/1", "epoch": "0"}


def test_a_later_format_is_left_alone(tmp_path: Path) -> None:
    AccountStore.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as raw:
        raw.execute("UPDATE state_meta SET value = 'state/2' WHERE name = 'format'")
    raw.close()
    with pytest.raises(StateError, match=r"its format is state/2, .* reads state/1. Use the"):
        AccountStore.open(tmp_path)


def test_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(StateError, match=r"state.db: the state cannot be kept there \("):
            AccountStore.open(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_the_folder_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StateError, match="Permission denied"):
        AccountStore.open(tmp_path / "state")


@pytest.mark.parametrize("content", [b"not a database", bytes(range(256)) * 64])
def test_the_file_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.db").write_bytes(content)
    with pytest.raises(StateError, match=r"cannot be read or written \(file is not a database\)"):
        AccountStore.open(tmp_path)
    assert (tmp_path / "state.db").read_bytes() == content


def test_the_file_is_torn(tmp_path: Path) -> None:
    AccountStore.open(tmp_path).close()
    path = tmp_path / "state.db"
    path.write_bytes(path.read_bytes()[:8_192])
    with pytest.raises(StateError, match="the state cannot be read or written"):
        AccountStore.open(tmp_path).snapshot()


def test_any_url_of_sqlalchemy_will_do(tmp_path: Path) -> None:
    url = f"sqlite+pysqlite:///{tmp_path}/other.db"
    store = AccountStore.open(tmp_path / "unused", url=url)
    store.audit("cli:ann", "pool.scale", "2")
    store.close()
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("state.db", "expected a database URL such as"),
        ("nope://localhost/x", "expected a database URL|no driver"),
        ("postgresql+psycopg://ann:secret@localhost/x", "no driver is installed"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_what_is_no_url_is_refused(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        AccountStore.open(tmp_path, url=url)
    assert "secret" not in str(caught.value)


def test_a_passwords_is_not_in_what_is_shown(tmp_path: Path) -> None:
    database = Database(locate(tmp_path))
    assert database.place == f"sqlite:///{tmp_path.resolve()}/state.db"
    database.close()


def test_a_locked_database_is_an_error_after_a_while(tmp_path: Path) -> None:
    database = Database(locate(tmp_path), busy_s=0.05)
    store = AccountStore(database)
    raw = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError, match="database is locked"):
        store.audit("cli:ann", "pool.scale", "2")
    assert store.audit_log() == []  # reading goes on
    raw.execute("ROLLBACK")
    raw.close()
    store.audit("cli:ann", "pool.scale", "2")
    assert len(store.audit_log()) == 1
    store.close()


def test_many_processes_may_make_it_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from serve.accounts.store import AccountStore\n"
        "store = AccountStore.open(Path(sys.argv[1]))\n"
        "for n in range(20): store.audit('cli:ann', 'pool.scale', str(n))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in started] == [
        (b"", 0)
    ] * 4
    store = AccountStore.open(tmp_path)
    assert len(store.audit_log(1_000)) == 80
    store.close()
