"""What a container does with an order: the run's end as a result, or as an error to try again."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.train.fakes import until
from tests.unit.train.jobs.test_local import ROOT, config
from train.errors import BadConfig, RunFailed
from train.jobs import container
from train.jobs.container import Stopped, carry_out
from train.jobs.order import FORMAT, Order
from train.publish.commits import CommitServer, commit
from train.run import RunDir

COMMAND = (sys.executable, "-m", "tests.unit.train.jobs.fakes")


class Carried:
    """An order carried out below a folder, with commits counted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commits = 0
        self.published = 0

    def commit(self) -> None:
        self.commits += 1

    def publish(self) -> None:
        self.published += 1

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "grpo_1"

    def order(self, script: str) -> dict[str, Any]:
        told = config(script, volumes__root=str(self.root))
        return Order(run="grpo_1", config=told).dump()

    def out(self, script: str, **options: Any) -> dict[str, Any]:
        return carry_out(
            self.order(script),
            commit_runs=self.commit,
            commit_policies=self.publish,
            command=COMMAND,
            sleep=lambda seconds: time.sleep(0.01),
            **options,
        )


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Carried:
    monkeypatch.chdir(ROOT)
    return Carried(tmp_path)


def test_a_run_that_ends_well(carried: Carried, capfd: pytest.CaptureFixture[str]) -> None:
    assert carried.out("finish") == {
        "run": "grpo_1",
        "state": "finished",
        "step": 4,
        "steps": 4,
        "version": 5,
        "message": "",
        "gpu_hours": None,
        "usd": None,
    }
    assert carried.commits >= 1
    assert "begun grpo_1" in capfd.readouterr().out
    assert RunDir(carried.folder).config().out == str(carried.root / "runs")


@pytest.mark.parametrize(
    ("script", "state", "message"),
    [("refuse", "refused", "no such env"), ("spend", "interrupted", "the budget is spent")],
)
def test_what_another_container_could_not_do_either_is_a_result(
    carried: Carried, script: str, state: str, message: str
) -> None:
    ended = carried.out(script)
    assert (ended["state"], ended["message"]) == (state, message)


@pytest.mark.parametrize(
    ("script", "said"), [("fail", "step 3: no disk"), ("die", "step 1: killed by SIGKILL")]
)
def test_what_may_go_on_is_raised_and_goes_on(carried: Carried, script: str, said: str) -> None:
    with pytest.raises(RunFailed, match=said):
        carried.out(script)
    assert carried.commits >= 1
    assert carried.out("finish")["state"] == "finished"
    log = (carried.folder / "job.log").read_text()
    assert [line for line in log.splitlines() if "grpo_1" in line] == [
        "begun grpo_1",
        "going on grpo_1",
    ]


def test_a_container_that_is_told_to_go_has_the_run_save_a_checkpoint(carried: Carried) -> None:
    def terminate() -> None:
        until(lambda: "waiting" in read(carried.folder / "job.log"))
        os.kill(os.getpid(), 15)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(Stopped):
        carried.out("wait")
    thread.join()
    assert read(carried.folder / "job.log").splitlines()[-1] == "saved"
    assert RunDir(carried.folder).status().message == "stopped by SIGTERM"


def test_the_policies_are_committed_when_the_learner_asks(
    carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner is a thread here; it finds the folder where the child would."""
    folders: list[Path] = []
    made = CommitServer

    def watched(folder: Path, commit_policies: Callable[[], None]) -> Any:
        folders.append(folder)
        return made(folder, commit_policies)

    monkeypatch.setattr(container, "CommitServer", watched)

    def ask() -> None:
        until(lambda: folders and "waiting" in read(carried.folder / "job.log"))
        commit(folders[0], 10)
        os.kill(os.getpid(), 15)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(Stopped):
        carried.out("wait")
    thread.join()
    assert carried.published == 1


def test_a_commit_that_fails_is_made_again(carried: Carried) -> None:
    def commit_at_last() -> None:
        carried.commit()
        if carried.commits < 4:
            raise RuntimeError("busy")

    ended = carry_out(
        carried.order("finish"),
        commit_runs=commit_at_last,
        commit_policies=carried.publish,
        command=COMMAND,
        sleep=lambda seconds: time.sleep(0.01),
    )
    assert ended["state"] == "finished"
    assert carried.commits == 4


def test_a_run_that_is_not_committed_at_all_may_be_tried_again(carried: Carried) -> None:
    def never() -> None:
        raise RuntimeError("busy")

    with pytest.raises(RunFailed, match="was not committed: busy"):
        carry_out(
            carried.order("finish"),
            commit_runs=never,
            commit_policies=carried.publish,
            command=COMMAND,
            sleep=lambda seconds: time.sleep(0.01),
        )


def test_an_order_of_another_version(carried: Carried) -> None:
    with pytest.raises(BadConfig, match=f"expects {FORMAT}, and was told None: deploy it again"):
        carry_out({}, commit_runs=carried.commit, commit_policies=carried.commit)
    order = carried.order("finish") | {"sha256": "0"}
    with pytest.raises(BadConfig, match="reads the config otherwise"):
        carry_out(order, commit_runs=carried.commit, commit_policies=carried.commit)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_another_machine_waits_until_the_first_has_begun(carried: Carried) -> None:
    told = config(
        "finish",
        volumes__root=str(carried.root),
        gateway__url="http://h:1",
        compute__nodes=2,
        learn__processes=2,
    )
    order = Order(run="grpo_1", config=told)

    def reload() -> None:
        carried.commits += 1
        if carried.commits == 2:
            RunDir.create_at(carried.folder, told, {})

    clock = iter(range(1000))
    argv = container._following(
        order, carried.folder, reload, lambda _: None, lambda: float(next(clock))
    )
    assert argv[1:] == ("-m", "train.follow", str(carried.folder), "--url", "http://h:1")
    (carried.folder / "status.json").unlink()
    with pytest.raises(RunFailed, match="the first machine has not begun grpo_1 within 600 s"):
        container._following(
            order, carried.folder, lambda: None, lambda _: None, lambda: float(next(clock))
        )
