import sqlite3
from pathlib import Path

import pytest

from serve.accounts.passwords import new_key
from serve.accounts.store import AccountStore
from serve.deploy.kept import KeptState, adopt_admin_key
from serve.errors import StateError
from serve.wire import Scope


def test_keys_outlive_the_container(tmp_path: Path) -> None:
    commits: list[int] = []
    first = KeptState(tmp_path / "one", tmp_path / "kept", lambda: commits.append(1))
    assert not first.restore()
    key = new_key()
    adopt_admin_key(tmp_path / "one", key)
    (tmp_path / "one" / "logs").mkdir()
    (tmp_path / "one" / "logs" / "x.log").write_text("not kept")
    (tmp_path / "one" / "train").mkdir()
    (tmp_path / "one" / "train" / "jobs.json").write_text("{}")
    first.save()
    first.save()
    assert commits == [1]
    second = KeptState(tmp_path / "two", tmp_path / "kept", lambda: None)
    assert second.restore()
    adopt_admin_key(tmp_path / "two", key)
    store = AccountStore.open(tmp_path / "two")
    known = store.keys()
    assert [info.scopes for info in known] == [frozenset({Scope.ADMIN})]
    store.close()
    assert (tmp_path / "two" / "train" / "jobs.json").is_file()
    assert not (tmp_path / "two" / "logs").exists()


def test_a_copy_is_whole_while_somebody_writes(tmp_path: Path) -> None:
    state, kept = tmp_path / "state", tmp_path / "kept"
    state.mkdir()
    writer = sqlite3.connect(state / "state.db")
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE t (x)")
    writer.execute("INSERT INTO t VALUES (1)")
    writer.commit()
    writer.execute("INSERT INTO t VALUES (2)")
    KeptState(state, kept, lambda: None).save()
    copy = sqlite3.connect(kept / "state.db")
    assert copy.execute("SELECT x FROM t").fetchall() == [(1,)]
    copy.close()
    writer.close()


def test_it_is_saved_at_most_every_few_seconds_and_when_something_changed(tmp_path: Path) -> None:
    commits: list[int] = []
    state = tmp_path / "state"
    state.mkdir()
    (state / "a").write_text("1")
    kept = KeptState(state, tmp_path / "kept", lambda: commits.append(1))
    kept.look()
    (state / "a").write_text("22")
    kept.look()
    assert len(commits) == 1
    kept.save()
    assert (tmp_path / "kept" / "a").read_text() == "22"
    assert len(commits) == 2


def test_a_secret_that_is_no_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="keys create --scope admin"):
        adopt_admin_key(tmp_path, "hunter2")
