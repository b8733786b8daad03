"""The parent of a run: starts the gateway and the learner, and keeps them going until the end.

A learner that was killed or that crashed is started again from its last checkpoint; a gateway of
the run's own that died is started again on its port, and the learner waits for it meanwhile. What
ends the run is the learner's exit code: 0 done, 1 it cannot go on, 2 it was asked something
impossible; other codes are crashes. No torch here, and one thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from train import children, cores, environment
from train.config import TrainConfig
from train.costs import Meter, list_rates, read_costs
from train.errors import GatewayLost, RunFailed, SaveFailed, TrainError, UsageError
from train.gateway import OwnGateway, serve_command
from train.remote import base_url, ensure_serves
from train.run import RunDir, State

_POLL_S = 0.1
_BACKOFF_S = 1.0
_MOST_BACKOFF_S = 30.0
_GATEWAY_DEATHS = 5
_GRACE_S = 30.0
_NODE_PORT = 29500
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What is started; `{url}` stands for the gateway's URL, `{port}` for the port it takes."""

    gateway: tuple[str, ...]
    learner: tuple[str, ...]

    @classmethod
    def of(cls, config: TrainConfig, run: RunDir) -> Commands:
        """Return the real ones."""
        return cls(
            gateway=serve_command(config, run.serve_path),
            learner=(
                *launcher(config.learn.processes),
                "train.learner",
                str(run.path),
                "--url",
                "{url}",
            ),
        )


def launcher(processes: int) -> tuple[str, ...]:
    """Return what comes before the learner's module: torch's launcher, where there are several."""
    if processes == 1:
        return (sys.executable, "-m")
    node = environment.node()
    return (
        *(sys.executable, "-m", "torch.distributed.run", *_where(node)),
        *(
            "--nproc-per-node",
            str(processes // (node.size if node else 1)),
            "--shutdown-timeout",
            f"{_GRACE_S:.0f}",
            "-m",
        ),
    )


def _where(node: environment.Node | None) -> tuple[str, ...]:
    """Return how the launcher finds its processes on other machines, if there are any."""
    if node is None:
        return ("--standalone",)
    return (
        *("--nnodes", str(node.size), "--node-rank", str(node.rank)),
        *("--master-addr", node.main, "--master-port", str(_NODE_PORT)),
    )


def supervise(
    config: TrainConfig,
    run: RunDir,
    resume: bool,
    say: Say,
    *,
    commands: Commands | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Train until the end; return the exit code: 0, 1, 2, or 128 + the signal that stopped it.

    Call it from the main thread, with the run locked.

    Raises:
        UsageError: the gateway is not there or does not serve the model, or the learner cannot
            do what it was asked.
        RunFailed: it stopped half-way.

    """
    watch = _Watch(
        config=config,
        run=run,
        commands=commands or Commands.of(config, run),
        say=say,
        sleep=sleep,
        clock=clock,
        meter=Meter(run.costs_path, config, list_rates(), clock),
    )
    say(f"{'going on with' if resume else 'run'} {run.path}")
    with _signals(watch):
        try:
            code = watch.train()
        except TrainError as error:
            with contextlib.suppress(SaveFailed):  # the first error is the one that counts
                run.update_status(State.FAILED, str(error))
            raise
        finally:
            watch.end()
            with contextlib.suppress(SaveFailed):
                watch.meter.write()
    _conclude(watch, code)
    return 1 if code and watch.over_budget else code


@contextlib.contextmanager
def _signals(watch: _Watch) -> Iterator[None]:
    """Tell `watch` of the signals that ask to stop, but for those that the parent ignores."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        watch.asked.append(signal.Signals(number))

    before = {
        number: signal.signal(number, on_signal)
        for number in _SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Both processes, and what became of them so far."""

    config: TrainConfig
    run: RunDir
    commands: Commands
    say: Say
    sleep: Callable[[float], None]
    clock: Callable[[], float]
    meter: Meter
    asked: list[signal.Signals] = field(default_factory=list)
    """Signals that came."""
    forwarded: int = 0
    gateway: OwnGateway | None = None
    learner: children.Child | None = None
    restarts: int = 0
    deaths: int = 0
    """Of the gateway, in a row without a step in between."""
    step_at_death: int = -1
    gateway_due_s: float | None = None
    """When a dead gateway is started again."""
    over_budget: str = ""
    """What was spent of what, once it is too much."""

    def train(self) -> int:
        """Return the exit code of the run."""
        url = self._open_gateway()
        while not self.asked:
            code = self._attempt(url)
            if code is not None:
                return code
            self.restarts += 1
            self._pause(min(_MOST_BACKOFF_S, _BACKOFF_S * 2 ** (self.restarts - 1)))
        return 128 + self.asked[0]

    def end(self) -> None:
        """Leave no process behind."""
        if self.learner is not None and self.learner.poll() is None:
            children.stop(self.learner, _GRACE_S, self.sleep)
        if self.gateway is not None:
            self.gateway.stop()

    def _open_gateway(self) -> str:
        """Return the URL of a gateway that serves the model, or "" if a signal came first."""
        config = self.config
        if config.gateway.url is not None:
            ensure_serves(config, os.environ.get(config.gateway.api_key_env) or None)
            return base_url(config.gateway.url)
        self.gateway = OwnGateway(
            self.commands.gateway,
            log=self.run.gateway_log_path,
            env=os.environ | dict(self._placement().gateway),
            inherit=self._inherited(),
            sleep=self.sleep,
            clock=self.clock,
        )
        self.say(f"starting a gateway; it says more in {self.run.gateway_log_path}")
        self.gateway.start()
        self.gateway.wait_ready(config.gateway.wait_s, self.say, lambda: bool(self.asked))
        if not self.asked:
            self.say(f"gateway at {self.gateway.url}")
        return self.gateway.url

    def _attempt(self, url: str) -> int | None:
        """Let a learner run to its end; return the exit code, or None to start another one."""
        self.run.update_status(State.RUNNING)
        placement = self._placement()
        several = self.config.learn.processes > 1
        self.learner = children.spawn(
            [word.replace("{url}", url) for word in self.commands.learner],
            env=os.environ | dict(placement.learner),
            # A launcher has processes of its own to end; a learner loses nothing by a hard end.
            death_signal=signal.SIGTERM if several else signal.SIGKILL,
            inherit=self._inherited(),
            cores=placement.learner_cores,
        )
        while (code := self.learner.poll()) is None:
            self._look_at_budget()
            self._forward()
            self._look_at_gateway()
            self.sleep(_POLL_S)
        return self._judge(code)

    def _judge(self, code: int) -> int | None:
        """Return the run's exit code after a learner's end, or None if it shall be repeated."""
        status, steps = self.run.status(), self.config.learn.steps
        if code == 0 and status.step >= steps:
            return 0
        if self.asked and status.state is not State.FAILED:
            return 128 + self.asked[0]
        if code == 0:
            raise RunFailed(f"something stopped the learner at step {status.step} of {steps}")
        if code == 2:
            raise UsageError(self._reason("the learner refuses; it has said why"))
        if status.state is State.FAILED or (code == 1 and not self._vanished()):
            raise RunFailed(self._reason("the learner cannot go on; it has said why"))
        how = children.describe(code)
        if self.restarts >= self.config.restarts:
            raise RunFailed(
                f"the learner died ({how}) after {self.restarts} restarts, the most that "
                f"`restarts` allows"
            )
        left = self.config.restarts - self.restarts - 1
        self.say(f"the learner died ({how}): once more from the last checkpoint, {left} left")
        return None

    def _vanished(self) -> bool:
        """Whether a learner behind a launcher, which knows only code 1, ended without a word."""
        return self.config.learn.processes > 1 and self.run.status().state is State.RUNNING

    def _reason(self, otherwise: str) -> str:
        status = self.run.status()
        return status.message if status.state is State.FAILED and status.message else otherwise

    def _forward(self) -> None:
        """Hand the first signal on; the second one ends the learner."""
        assert self.learner is not None
        if len(self.asked) > 1:
            self.say("killing the learner; its last checkpoint stays")
            children.kill(self.learner)
        elif self.asked and not self.forwarded:
            self.forwarded = 1
            number = self.asked[0]
            self.say(f"{number.name}: the learner saves a checkpoint and ends; once more kills it")
            self.learner.send_signal(signal.SIGINT if number is signal.SIGINT else signal.SIGTERM)

    def _look_at_gateway(self) -> None:
        """Start a gateway that died again, in a while."""
        gateway = self.gateway
        if gateway is None:
            return
        if self.gateway_due_s is not None:
            if self.clock() >= self.gateway_due_s:
                self.gateway_due_s = None
                gateway.start()
            return
        was_ready = gateway.is_ready
        code = gateway.poll(self.say)
        if code is None:
            if gateway.is_ready and not was_ready:
                self.say(f"the gateway is back at {gateway.url}")
            return
        step = self.run.status().step
        self.deaths = 1 if step > self.step_at_death else self.deaths + 1
        self.step_at_death = step
        if self.deaths > _GATEWAY_DEATHS:
            raise GatewayLost(
                f"the gateway died {self.deaths} times without a step in between: "
                f"{gateway.died(code)}"
            )
        wait_s = min(_MOST_BACKOFF_S, _BACKOFF_S * 2 ** (self.deaths - 1))
        self.say(f"the gateway died ({children.describe(code)}): once more in {wait_s:.0f} s")
        self.gateway_due_s = self.clock() + wait_s

    def _look_at_budget(self) -> None:
        """Ask the learner to stop, as a signal would, once the budget is spent."""
        spent = self.meter.tick()
        if spent and not self.asked:
            self.over_budget = spent
            self.say(f"the budget is spent: {spent}")
            self.asked.append(signal.SIGTERM)

    def _pause(self, wait_s: float) -> None:
        """Wait before the next learner, and mind signals and the gateway meanwhile."""
        until_s = self.clock() + wait_s
        while self.clock() < until_s and not self.asked:
            self._look_at_gateway()
            self.sleep(_POLL_S)

    def _placement(self) -> cores.Placement:
        return cores.place(
            self.config, cores=cores.here(), gpu=cores.has_gpu(), environment=os.environ
        )

    def _inherited(self) -> Sequence[int]:
        """Children hold the run's lock too: while one is left, nobody else trains the run."""
        return () if self.run.lock_descriptor is None else (self.run.lock_descriptor,)


def _conclude(watch: _Watch, code: int) -> None:
    """Write how the run ended, and say where things are."""
    run = watch.run
    if code == 0:
        run.update_status(State.FINISHED)
    else:
        why = f"the budget is spent: {watch.over_budget}" if watch.over_budget else ""
        run.update_status(State.INTERRUPTED, why or f"stopped by {watch.asked[0].name}")
    for line in summary(watch.config, run, finished=code == 0):
        watch.say(line)


def summary(config: TrainConfig, run: RunDir, *, finished: bool) -> list[str]:
    """Return the lines that close a run: where things are and what can be done with them."""
    from train.learner.checkpoints import SavedCheckpoints  # noqa: PLC0415  # numpy

    status = run.status()
    saved = SavedCheckpoints(run.checkpoints_path)
    step = saved.latest()
    name = config.model.name or Path(config.model.path).name
    label = name if status.version is None else f"{name}@{status.version}"
    lines = [f"{'done' if finished else 'stopped'}: step {status.step} of {config.learn.steps}"]
    lines.append(f"run         {run.path}")
    lines.append(f"checkpoint  {'none yet' if step is None else saved.path(step)}")
    if status.version is not None:
        lines.append(f"published   {label}")
    costs = read_costs(run.costs_path)
    if costs is not None and config.compute.gpu is not None:
        lines.append(f"used        {costs['gpu_hours']} GPU-hours, {costs['usd']} USD")
    if not finished:
        lines.append(f"go on       python -m train grpo --resume {run.path}")
    if config.gateway.url is None:
        words = serve_command(config, run.serve_path)[1:]
        lines.append(f"serve       {shlex.join(['python', *_without_port(words)])}")
    lines.append(
        f"evaluate    {shlex.join(['python', '-m', 'evalkit', *_evaluation(config, label)])}"
    )
    return lines


def _without_port(words: Sequence[str]) -> list[str]:
    """Leave the port to serve's default."""
    at = words.index("--port")
    return [*words[:at], *words[at + 2 :]]


def _evaluation(config: TrainConfig, label: str) -> list[str]:
    """Return the options with which evalkit plays what was trained."""
    url = base_url(config.gateway.url or "http://127.0.0.1:8000")
    env_args = (f"{key}={json.dumps(value)}" for key, value in config.env.args.items())
    return [
        *("--model", f"{url}#{label}", "--env", config.env.name),
        *(word for pair in env_args for word in ("--env-arg", pair)),
        *("--strategy", config.rollouts.strategy),
        *("--max-tokens", str(config.rollouts.max_tokens)),
    ]
