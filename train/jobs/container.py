"""A run inside a container: the same command as on a laptop, watched, and its volume committed.

What is complete on the volume is what another container goes on with: so it is committed after
each checkpoint, and every few seconds for those who read the log. Knows nothing of Modal but that
something must be called to commit, and that an end may come as an exception in the main thread.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from train import children
from train.config import dumps
from train.costs import read_costs
from train.environment import COMMITS, NODE, Node, without_settings
from train.errors import RunFailed
from train.jobs.order import Order, Outcome, run_folder
from train.jobs.tail import last_error, new_lines
from train.publish.commits import CommitServer
from train.run import RunDir, State

_POLL_S = 0.5
_COMMIT_EVERY_S = 20.0
_COMMIT_WHILE_ENDING_S = 5.0
_COMMIT_AGAIN_S = 2.0
_LAST_COMMITS = 5
_GRACE_S = 600.0
_BEGIN_S = 600.0
_TOLD = (sys.executable, "-m", "train", "grpo")

Commit = Callable[[], None]


class Stopped(BaseException):
    """SIGTERM came: the container is about to go."""


def carry_out(
    told: Mapping[str, Any],
    *,
    commit_runs: Commit,
    commit_policies: Commit,
    reload_runs: Commit = lambda: None,
    node: Node | None = None,
    command: tuple[str, ...] = _TOLD,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Begin the order's run, or go on with it; return its Outcome. Call it in the main thread.

    Raises:
        BadConfig: the order is of another version.
        RunFailed: it stopped half-way; the same order carried out again goes on.

    """
    order = Order.load(told)
    folder = run_folder(order.config, order.run)
    with tempfile.TemporaryDirectory(prefix="palaestra-") as requests:
        watch = _Watch(
            order=order,
            folder=folder,
            runs=commit_runs,
            policies=CommitServer(Path(requests), commit_policies),
            sleep=sleep,
            clock=clock,
        )
        if node is None or node.rank == 0:
            argv = (*command, *_words(order, folder))
        else:
            argv = _following(order, folder, reload_runs, sleep, clock)
        watch.start(argv, requests, node)
        before = signal.signal(signal.SIGTERM, _on_sigterm)
        try:
            code = watch.until_end()
        except BaseException:
            # However the container is told to go (cancelled, preempted, terminated): the run saves
            # a checkpoint, the volume is committed, and the caller learns of it unchanged.
            watch.stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    return _outcome(order, folder, code).dump()


def _words(order: Order, folder: Path) -> tuple[str, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    config = order.config.model_copy(update={"out": str(folder.parent)})
    path = folder / "job.yaml"
    path.write_text(dumps(config), "utf-8")
    return "--config", str(path), "--run", str(folder)


def _following(
    order: Order,
    folder: Path,
    reload: Commit,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> tuple[str, ...]:
    """Return the command of a machine that is not the first, once that one has begun the run."""
    until_s = clock() + _BEGIN_S
    while not RunDir.is_begun(folder):
        if clock() >= until_s:
            raise RunFailed(f"the first machine has not begun {order.run} within {_BEGIN_S:.0f} s")
        sleep(_POLL_S)
        reload()
    url = order.config.gateway.url or ""
    return sys.executable, "-m", "train.follow", str(folder), "--url", url


@dataclass(slots=True, kw_only=True)
class _Watch:
    order: Order
    folder: Path
    runs: Commit
    policies: CommitServer
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    child: children.Child | None = None
    log: Path = Path("job.log")
    log_at: int = 0
    committed_s: float = field(default=-1e9)
    saved: frozenset[str] = frozenset()
    """Checkpoints that are committed."""

    def start(self, argv: tuple[str, ...], requests: str, node: Node | None) -> None:
        self.log = self.folder / ("job.log" if node is None else f"job{node.rank or ''}.log")
        log = self.log
        self.log_at = log.stat().st_size if log.exists() else 0
        cache = Path(self.order.config.volumes.root) / "cache"
        added = {
            "HF_HOME": str(cache / "huggingface"),
            "VLLM_CACHE_ROOT": str(cache / "vllm"),
            "PALAESTRA_CACHE": str(cache / "palaestra"),
            "PYTHONUNBUFFERED": "1",
            COMMITS: requests,
            **({} if node is None else {NODE: node.dump()}),
        }
        with log.open("ab") as output:
            self.child = children.spawn(
                argv,
                env=without_settings() | added,
                death_signal=signal.SIGKILL,  # as when the machine is gone
                output=output,
            )

    def until_end(self) -> int:
        assert self.child is not None
        while (code := self.child.poll()) is None:
            self.look(_COMMIT_EVERY_S)
            self.sleep(_POLL_S)
        self.finish()
        return code

    def stop(self) -> None:
        assert self.child is not None
        if self.child.poll() is None:
            self.child.terminate()
        until_s = self.clock() + _GRACE_S
        while self.child.poll() is None and self.clock() < until_s:
            self.look(_COMMIT_WHILE_ENDING_S)
            self.sleep(_POLL_S)
        children.kill(self.child)
        self.finish()

    def look(self, every_s: float) -> None:
        """Pass on what was said, and commit where there is a reason to."""
        self.say()
        self.policies.serve()
        there = _checkpoints(self.folder)
        if self.clock() - self.committed_s < (_COMMIT_AGAIN_S if there != self.saved else every_s):
            return
        self.committed_s = self.clock()
        try:
            self.commit()
        except RuntimeError as error:
            sys.stdout.write(f"not committed, and tried again soon: {error}\n")
        else:
            self.saved = there

    def commit(self) -> None:
        """Commit the runs; raise RuntimeError.

        Modal's client reloads after it has committed, which open files prevent: the changes of
        others, which nobody needs here, are then missing, and ours are safe.
        """
        try:
            self.runs()
        except RuntimeError as error:
            if "open files" not in str(error):
                raise

    def finish(self) -> None:
        """Commit what there is, now that nobody writes any more; raise RunFailed."""
        self.say(whole=True)
        for left in reversed(range(_LAST_COMMITS)):
            try:
                self.commit()
            except RuntimeError as error:
                if not left:
                    raise RunFailed(f"the runs volume was not committed: {error}") from error
                self.sleep(_POLL_S)
            else:
                return

    def say(self, *, whole: bool = False) -> None:
        lines, self.log_at = new_lines(self.log, self.log_at, whole=whole)
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _checkpoints(folder: Path) -> frozenset[str]:
    path = folder / "checkpoints"
    if not path.is_dir():
        return frozenset()
    return frozenset(each.name for each in path.iterdir() if not each.name.startswith("."))


def _outcome(order: Order, folder: Path, code: int) -> Outcome:
    """Return how it ended, or raise what may be tried again."""
    said = last_error(folder / "job.log") or f"{children.describe(code)}"
    if not RunDir.is_begun(folder):
        if code == 2:
            return _ended(order, "refused", 0, None, said, folder)
        raise RunFailed(f"{order.run} ended before it began: {said}")
    status = RunDir(folder).status()
    if code == 0 or (code == 1 and status.state is State.INTERRUPTED):
        said = status.message
    elif code != 2:
        raise RunFailed(f"{order.run} at step {status.step}: {said}")
    state = "refused" if code == 2 else status.state.value
    return _ended(order, state, status.step, status.version, said, folder)


def _ended(
    order: Order, state: str, step: int, version: int | None, message: str, folder: Path
) -> Outcome:
    costs = read_costs(folder / "costs.json") or {}
    return Outcome(
        run=order.run,
        state=state,
        step=step,
        steps=order.config.learn.steps,
        version=version,
        message=message,
        gpu_hours=costs.get("gpu_hours"),
        usd=costs.get("usd"),
    )


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise Stopped
