"""Commits of a volume, asked for here and made there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.train.fakes import until
from train.config import resolve
from train.errors import PublishFailed
from train.publish.commits import CommitServer, commit, committing, outbox
from train.run import RunDir


class Ends(Exception):
    pass


def test_all_who_ask_are_answered_by_one_commit(tmp_path: Path) -> None:
    made: list[int] = []
    server = CommitServer(tmp_path, lambda: made.append(1))
    server.serve()
    asking = [threading.Thread(target=commit, args=(tmp_path, 10)) for _ in range(3)]
    for thread in asking:
        thread.start()
    until(lambda: len(list(tmp_path.glob("*.wanted"))) == 3)
    server.serve()
    for thread in asking:
        thread.join()
    assert made == [1]
    assert list(tmp_path.iterdir()) == []


def test_who_asks_is_told_of_a_commit_that_failed(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("no room")

    server = CommitServer(tmp_path, fail)
    with pytest.raises(PublishFailed, match="was not committed: RuntimeError: no room"):
        commit(tmp_path, 10, sleep=lambda _: server.serve())


def test_nobody_answers(tmp_path: Path) -> None:
    clock = iter(range(100))
    with pytest.raises(PublishFailed, match="was not committed within 5 s"):
        commit(tmp_path, 5, sleep=lambda _: None, clock=lambda: float(next(clock)))


def config(root: Path, **settings: Any) -> Any:
    tree = {"env": {"name": "key_door"}, "model": {"path": "m"}}
    return resolve(tree, {"volumes.root": str(root), **settings})


def test_versions_wait_where_their_gateway_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "grpo_1")
    own, served = config(tmp_path), config(tmp_path, **{"gateway.url": "http://h:1"})
    for told in (own, served):
        assert outbox(told, run) == run.versions_path
        committing(told)()
    monkeypatch.setenv("PALAESTRA_TRAIN_COMMITS", str(tmp_path))
    assert outbox(own, run) == run.versions_path
    committing(own)()
    folder = outbox(served, run)
    assert folder == tmp_path / "policies" / "incoming" / "grpo_1"
    assert folder.is_dir()
    server = CommitServer(tmp_path, lambda: None)
    thread = threading.Thread(target=committing(served))
    thread.start()
    until(lambda: list(tmp_path.glob("*.wanted")))
    server.serve()
    thread.join(10)
    assert not thread.is_alive()
