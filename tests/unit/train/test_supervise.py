"""The parent, with scripted processes in the places of gateway and learner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.train import fakes
from tests.unit.train.fakes import alive, until
from train.config import TrainConfig, resolve
from train.costs import read_costs
from train.environment import Node
from train.errors import BadConfig, GatewayLost, RunFailed, UsageError
from train.run import RunDir, State, Status
from train.supervise import Commands, launcher, summary, supervise

GATEWAY = (*fakes.PYTHON, fakes.__file__, "gateway", "--port", "{port}")
SPEED = 50.0


def config(**overrides: Any) -> TrainConfig:
    tree = {
        "env": {"name": "key_door", "args": {"size": 3}},
        "model": {"path": "models/m"},
        "learn": {"steps": 4},
    }
    return resolve(tree, {key.replace("__", "."): value for key, value in overrides.items()})


class Played:
    """A run whose learner does the script's lines, one per start, fifty times as fast."""

    def __init__(
        self,
        out: Path,
        script: str,
        *,
        told: TrainConfig | None = None,
        gateway: Sequence[str] = GATEWAY,
    ) -> None:
        self.config = told or config()
        self.run = RunDir.create(out, self.config, {})
        self.said: list[str] = []
        (self.run.path / "script").write_text(script)
        self.commands = Commands(gateway=tuple(gateway), learner=self.learner)

    @property
    def learner(self) -> tuple[str, ...]:
        script = str(self.run.path / "script")
        return (*fakes.PYTHON, fakes.__file__, "learner", str(self.run.path), "{url}", script)

    def play(self) -> int:
        with self.run.locked():
            return supervise(
                self.config,
                self.run,
                False,
                self.said.append,
                commands=self.commands,
                sleep=lambda seconds: time.sleep(seconds / SPEED),
                clock=lambda: time.monotonic() * SPEED,
            )

    @property
    def starts(self) -> int:
        return len((self.run.path / "starts").read_text().split())

    def saying(self, words: str) -> list[str]:
        return [line for line in self.said if words in line]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Played]:
    def make(script: str, **options: Any) -> Played:
        return Played(tmp_path / "runs", script, **options)

    return make


def gateway_pids(run: RunDir) -> list[int]:
    log = run.gateway_log_path.read_text() if run.gateway_log_path.exists() else ""
    return [int(line.split()[1]) for line in log.splitlines() if line.startswith("pid ")]


def test_a_run_that_ends_well(play: Callable[..., Played]) -> None:
    run = play("answers step=4 exit=0")
    assert run.play() == 0
    assert run.run.status() == Status(state=State.FINISHED, step=4, version=4)
    assert run.starts == 1
    assert not any(map(alive, gateway_pids(run.run)))
    assert run.said[-6:] == [
        "done: step 4 of 4",
        f"run         {run.run.path}",
        "checkpoint  none yet",
        "published   m@4",
        (
            "serve       python -m serve up --model models/m --name m --host 127.0.0.1 "
            f"--state {run.run.serve_path} --replicas 1"
        ),
        (
            "evaluate    python -m evalkit --model 'http://127.0.0.1:8000/v1#m@4' --env key_door "
            "--env-arg size=3 --strategy FULL_HISTORY --max-tokens 64"
        ),
    ]


@pytest.mark.parametrize("death", ["kill=9", "exit=3"])
def test_a_learner_that_died_is_started_again(play: Callable[..., Played], death: str) -> None:
    run = play(f"step=1 {death}\nstep=2 {death}\nanswers step=4 exit=0")
    assert run.play() == 0
    assert run.starts == 3
    assert [line[-7:] for line in run.saying("the learner died")] == [" 2 left", " 1 left"]
    assert len(gateway_pids(run.run)) == 1


@pytest.mark.parametrize("restarts", [0, 2])
def test_it_is_started_again_only_so_often(play: Callable[..., Played], restarts: int) -> None:
    run = play("step=1 kill=9", told=config(restarts=restarts))
    with pytest.raises(RunFailed, match=rf"died \(killed by SIGKILL\) after {restarts} restarts"):
        run.play()
    assert run.starts == restarts + 1
    status = run.run.status()
    assert (status.state, status.step) == (State.FAILED, 1)
    assert "killed by SIGKILL" in status.message
    assert not any(map(alive, gateway_pids(run.run)))


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("exit=1", RunFailed, "it has said why"),
        ("fail=disk exit=1", RunFailed, "^no disk$"),
        ("step=3 exit=0", RunFailed, "something stopped the learner at step 3 of 4"),
        ("exit=2", UsageError, "it has said why"),
        ("fail=room exit=2", UsageError, "^no room$"),
    ],
)
def test_what_cannot_go_on_is_not_repeated(
    play: Callable[..., Played], script: str, error: type[Exception], said: str
) -> None:
    run = play(script)
    with pytest.raises(error, match=said):
        run.play()
    assert run.starts == 1
    assert run.run.status().state is State.FAILED


def test_behind_a_launcher_a_silent_death_is_a_crash(play: Callable[..., Played]) -> None:
    """It ends with 1 whatever becomes of the processes that it launched."""
    run = play("exit=1\nfail=disk exit=1", told=config(learn__processes=2))
    with pytest.raises(RunFailed, match="no disk"):
        run.play()
    assert run.starts == 2


def test_several_processes_are_launched_by_torch(tmp_path: Path) -> None:
    told = config(learn__processes=2)
    run = RunDir.create(tmp_path, told, {})
    argv = Commands.of(told, run).learner
    assert argv[1:3] == ("-m", "torch.distributed.run")
    assert argv[-5:] == ("-m", "train.learner", str(run.path), "--url", "{url}")
    launch = pytest.importorskip("torch.distributed.run")
    parsed = launch.get_args_parser().parse_args(list(argv[3:]))
    assert (parsed.nproc_per_node, parsed.standalone, parsed.module) == ("2", True, True)
    assert (parsed.max_restarts, parsed.shutdown_timeout) == (0, 30)
    assert parsed.training_script_args == [str(run.path), "--url", "{url}"]


def test_a_gateway_that_dies_is_started_again_on_its_port(play: Callable[..., Played]) -> None:
    run = play(
        "answers step=1 dead answers step=4 exit=0",
        gateway=(*fakes.PYTHON, fakes.__file__, "gateway", "--port", "{port}", "0.4"),
    )
    assert run.play() == 0
    assert run.starts == 1
    assert len(gateway_pids(run.run)) >= 2
    assert run.saying("the gateway died (exit code 7): once more in 1 s")
    assert run.saying("the gateway is back at http://127.0.0.1:")
    urls = {
        line.split()[-1]
        for line in run.run.gateway_log_path.read_text().splitlines()
        if line.startswith("base URL")
    }
    assert len(urls) == 1


def test_a_gateway_that_keeps_dying_ends_the_run(play: Callable[..., Played]) -> None:
    run = play(
        "sleep=60",
        gateway=(*fakes.PYTHON, fakes.__file__, "gateway", "--port", "{port}", "0.01"),
    )
    with pytest.raises(GatewayLost, match="died 6 times without a step in between"):
        run.play()
    learner = int((run.run.path / "starts").read_text())
    assert not alive(learner)
    assert run.run.status().state is State.FAILED


def test_with_steps_in_between_a_gateway_may_die_often(play: Callable[..., Played]) -> None:
    run = play(
        "outlive=9 step=4 exit=0",
        gateway=(*fakes.PYTHON, fakes.__file__, "gateway", "--port", "{port}", "0.01"),
    )
    assert run.play() == 0
    assert len(gateway_pids(run.run)) >= 9


def test_a_gateway_that_does_not_start_ends_the_run(play: Callable[..., Played]) -> None:
    run = play("exit=0", gateway=(*fakes.PYTHON, "-c", "print('error: full'); raise SystemExit(2)"))
    with pytest.raises(BadConfig, match="the gateway refuses: full"):
        run.play()
    assert not (run.run.path / "starts").exists()


PARENT = """
import sys
from pathlib import Path
from train.errors import TrainError
from train.run import RunDir
from train.supervise import Commands, supervise
run = RunDir.open(Path(sys.argv[1]))
cut = sys.argv.index("::")
commands = Commands(gateway=tuple(sys.argv[2:cut]), learner=tuple(sys.argv[cut + 1 :]))
with run.locked():
    code = supervise(
        run.config(), run, False, lambda line: print(line, flush=True), commands=commands
    )
print("pids", run.lock_descriptor)
sys.exit(code)
"""


def test_a_checkpoint_that_fails_on_the_way_out_is_said(play: Callable[..., Played]) -> None:
    run = play("failing up sleep=60")
    with parent(run) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 1
    assert run.run.status() == Status(state=State.FAILED, step=1, message="no disk", version=1)


@contextmanager
def parent(
    run: Played, signals: str = "--default-signal=INT,TERM,HUP"
) -> Iterator[subprocess.Popen[str]]:
    argv = ["env", signals, sys.executable, "-c", PARENT]
    words = [*argv, str(run.run.path), *run.commands.gateway, "::", *run.commands.learner]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            until((run.run.path / "up").exists)
            yield process
        finally:
            process.kill()


def children_of(run: Played) -> list[int]:
    return [*gateway_pids(run.run), int((run.run.path / "starts").read_text().split()[-1])]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_is_forwarded_and_the_learner_ends_by_itself(
    play: Callable[..., Played], number: int, code: int
) -> None:
    run = play("step=2 graceful=143 up sleep=60")
    with parent(run) as process:
        pids = children_of(run)
        os.killpg(process.pid, number)  # as a terminal does
        told = process.communicate(timeout=30)[0]
    assert process.returncode == code
    assert not any(map(alive, pids))
    name = signal.Signals(number).name
    assert told.count(f"{name}: the learner saves a checkpoint and ends") == 1
    assert f"go on       python -m train grpo --resume {run.run.path}" in told
    assert run.run.status() == Status(
        state=State.INTERRUPTED, step=2, message=f"stopped by {name}", version=2
    )


def test_a_signal_that_the_parent_was_told_to_ignore_is_ignored(
    play: Callable[..., Played],
) -> None:
    """As `nohup` does with SIGHUP."""
    run = play("step=4 graceful=143 up sleep=0.5 exit=0")
    with parent(run, "--ignore-signal=HUP") as process:
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_run_that_was_just_done_when_the_signal_came_is_finished(
    play: Callable[..., Played],
) -> None:
    run = play("step=4 graceful=0 up sleep=60")
    with parent(run) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert run.run.status().state is State.FINISHED


def test_the_second_signal_kills(play: Callable[..., Played]) -> None:
    run = play("step=2 counting up sleep=60")
    with parent(run) as process:
        pids = children_of(run)
        process.send_signal(signal.SIGINT)
        until((run.run.path / "signals").exists)
        time.sleep(0.4)
        assert (run.run.path / "signals").read_text() == "x"
        assert alive(pids[-1])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert not any(map(alive, pids))


def test_a_signal_while_the_gateway_starts_ends_the_run(play: Callable[..., Played]) -> None:
    run = play("exit=0")
    slow = "import time; open({!r}, 'w'); time.sleep(60)".format(str(run.run.path / "up"))
    run.commands = replace(run.commands, gateway=(sys.executable, "-c", slow))
    with parent(run) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert not (run.run.path / "starts").exists()


def test_no_child_outlives_a_parent_that_is_killed(play: Callable[..., Played]) -> None:
    run = play("step=2 deaf up sleep=60")
    with parent(run) as process:
        pids = children_of(run)
        assert len(pids) == 2
        assert all(map(alive, pids))
        lock = run.run.lock_path
        for pid in pids:
            assert lock in {file.readlink() for file in Path(f"/proc/{pid}/fd").iterdir()}
        with pytest.raises(BadConfig, match=f"by another process, {process.pid}"), run.run.locked():
            pytest.fail("it was locked")
        process.kill()
        process.communicate()
    until(lambda: not any(map(alive, pids)), 2.0)
    with run.run.locked(wait_s=2.0):
        assert run.run.status().state is State.RUNNING


REMOTE = {"gateway__url": "http://127.0.0.1:1/v1"}


def test_a_dead_url_starts_nothing(play: Callable[..., Played]) -> None:
    run = play("exit=0", told=config(**REMOTE))
    with pytest.raises(BadConfig, match="no gateway answers"):
        run.play()
    assert not (run.run.path / "starts").exists()
    assert not run.run.gateway_log_path.exists()


def test_a_remote_gateway_is_named_in_the_summary(tmp_path: Path) -> None:
    told = config(**REMOTE)
    run = RunDir.create(tmp_path, told, {})
    lines = summary(told, run, finished=False)
    assert not [line for line in lines if line.startswith("serve")]
    assert lines[-1].startswith("evaluate    python -m evalkit --model 'http://127.0.0.1:1/v1#m' ")


def test_a_spent_budget_stops_a_run_cleanly(play: Callable[..., Played]) -> None:
    told = config(compute__gpu="H100", budget__gpu_hours=0.1)
    run = play("step=2 graceful=0 sleep=60", told=told)
    assert run.play() == 1
    status = run.run.status()
    assert (status.state, status.step) == (State.INTERRUPTED, 2)
    assert re.fullmatch(
        r"the budget is spent: 0\.1\d GPU-hours of budget\.gpu_hours=0\.1", status.message
    )
    assert run.starts == 1
    costs = read_costs(run.run.costs_path)
    assert costs is not None
    assert costs["gpu_hours"] >= 0.1
    assert run.saying(f"used        {costs['gpu_hours']} GPU-hours")


def test_processes_of_several_machines_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = launcher(16)
    assert "--standalone" in alone
    monkeypatch.setenv("PALAESTRA_TRAIN_NODE", Node(rank=1, size=2, main="10.0.0.1").dump())
    words = launcher(16)
    assert "--standalone" not in words
    told = dict(zip(words[3:-1:2], words[4:-1:2], strict=True))
    assert told["--nnodes"] == "2"
    assert told["--node-rank"] == "1"
    assert told["--nproc-per-node"] == "8"
    assert told["--master-addr"] == "10.0.0.1"
