"""Every key of the config changes something: one case per key, seen where it does its work."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import modal
import pytest
import torch
from pydantic import BaseModel

from tests.unit.train.tinies import make_checkpoint
from train import cli, cores, notify, supervise
from train.config import TrainConfig, load
from train.costs import Meter, Spent, list_rates
from train.errors import BadConfig, RunFailed
from train.jobs import modal_jobs
from train.run import RunDir

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from train.learner import served, session, sync_mode
    from train.learner.losses import token_loss
    from train.publish import probe

KEY = "PALAESTRA_TEST_KEY"


class Stub:
    """In a trainer's place: keeps what it was told."""

    def __init__(self, **told: Any) -> None:
        self.told = SimpleNamespace(**told)
        self.args, self.losses, self.peft_config = told["args"], told["losses"], told["peft_config"]
        self.processing_class = SimpleNamespace(pad_token_id=0)
        self.accelerator = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1)
        self.sink: dict[str, list[Any]] = {}


class SyncStub(Stub):
    """In the place of the one that plays and learns in turns."""


class FakeWandb(ModuleType):
    """Keeps what a run is begun with."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.errors = SimpleNamespace(UsageError=self.Error, AuthenticationError=self.Error)
        self.Settings = dict
        self.began: list[dict[str, Any]] = []

    def init(self, **settings: Any) -> Any:
        self.began.append(settings)
        return SimpleNamespace(finish=lambda: None)


class FakeGateway:
    """In the place of a gateway of one's own: keeps how it was started and waited for."""

    def __init__(self, command: tuple[str, ...], **told: Any) -> None:
        self.words, self.waited_s, self.url = command, -1.0, "http://127.0.0.1:4321/v1"

    def start(self) -> None: ...

    def wait_ready(self, timeout_s: float, *_: Any) -> bool:
        self.waited_s = timeout_s
        return True


class FakeFunction:
    """In the place of a function on Modal: keeps the hardware that it is called on."""

    object_id = "fc-1"

    def with_options(self, **options: Any) -> Any:
        self.options = options
        return self

    def spawn(self, order: dict[str, Any]) -> Any:
        return self


class Seen:
    """What a config becomes, each part made when it is first looked at."""

    def __init__(self, config: TrainConfig, out: Path, wandb: FakeWandb) -> None:
        self.config, self.wandb = config, wandb
        self.run = RunDir.create(out, config, {})
        self.served = served.Served(
            url="http://127.0.0.1:4321/v1", key=None, name="m", max_model_len=4096
        )
        self._built: session.Learner | None = None

    @property
    def learner(self) -> session.Learner:
        if self._built is None:
            with redirect_stdout(StringIO()):
                self._built = session.build(self.config, self.run, self.served)
            assert self._built.tracker is not None
            self._built.tracker.close()
        return self._built

    @property
    def trainer(self) -> Any:
        return self.learner.trainer

    @property
    def args(self) -> Any:
        return self.trainer.args

    @property
    def schedule(self) -> Any:
        return self.learner.worker.schedule

    @property
    def steps(self) -> Any:
        return self.trainer.steps._plan

    @property
    def channel(self) -> Any:
        return self.trainer.told.publisher

    @property
    def player(self) -> Any:
        return asyncio.run(self.learner.worker._connect())  # type: ignore[arg-type]

    @property
    def plan(self) -> Any:
        return self.player._plan

    @property
    def asked(self) -> dict[str, Any]:
        """The fields of each request that do not change."""
        told: dict[str, Any] = json.loads(self.player._model._params + b"}")
        return told

    @property
    def limits(self) -> Any:
        return self.player._model._patience.limits

    @property
    def env(self) -> Any:
        return self.plan.make_env()

    @property
    def commands(self) -> supervise.Commands:
        return supervise.Commands.of(self.config, self.run)

    @property
    def watch(self) -> Any:
        return supervise._Watch(
            config=self.config,
            run=self.run,
            commands=self.commands,
            say=lambda _: None,
            sleep=lambda _: None,
            clock=lambda: 0.0,
            meter=Meter(self.run.costs_path, self.config, list_rates()),
        )

    def gateway_word(self, option: str) -> str | None:
        words = self.commands.gateway
        return words[words.index(option) + 1] if option in words else None

    def model(self) -> str:
        """Return the one folder that is served, trained and copied from."""
        told = (self.gateway_word("--model"), self.trainer.told.model, self.channel._source)
        (only,) = set(map(str, told))
        return only

    def opened(self) -> tuple[str, float]:
        """Return the URL that the learner gets, and how long its own gateway is waited for."""
        watch = self.watch
        url = watch._open_gateway()
        return url, -1.0 if watch.gateway is None else watch.gateway.waited_s

    def restarted(self) -> bool:
        """Whether a learner that died for the third time is started again."""
        watch = self.watch
        watch.restarts = 2
        try:
            return watch._judge(-9) is None
        except RunFailed:
            return False

    def placed(self) -> Any:
        """Return the learner's environment beside a gateway of its own."""
        found = cores.place(self.config, cores=frozenset({0, 1}), gpu=False, environment={})
        return found.learner["OMP_NUM_THREADS"]

    @property
    def asked_for(self) -> tuple[str, str]:
        """Return the app and the function that a job on Modal is handed to."""
        asked: list[tuple[str, str]] = []

        class Function(FakeFunction):
            @staticmethod
            def from_name(app: str, name: str) -> FakeFunction:
                asked.append((app, name))
                return FakeFunction()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(modal, "Function", Function)
            patch.setattr(modal_jobs.Files, "write", lambda *_: None)
            modal_jobs.ModalJobs.of(self.config).start(self.config)
        return asked[0]

    def hardware(self, name: str) -> Any:
        """Return what a call on Modal is given."""
        called = FakeFunction()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(modal_jobs.Files, "write", lambda *_: None)
            modal_jobs.spawn(called, self.config)  # type: ignore[arg-type]
        return called.options[name]

    @property
    def volumes(self) -> dict[str, str]:
        return {path: volume.name for path, volume in self.hardware("volumes").items()}

    def devices(self) -> str | None:
        """Return the GPUs that the engine gets."""
        found = cores.place(self.config, cores=frozenset({0}), gpu=True, environment={})
        return found.gateway.get("CUDA_VISIBLE_DEVICES")

    def spent(self) -> float:
        """Return what a second costs."""
        usd = Spent.of(self.config.compute, 1.0, list_rates()).usd
        assert usd is not None
        return round(usd, 8)

    def over_budget(self) -> bool:
        """Whether a run that has run for an hour is told to stop."""
        meter = Meter(
            self.run.costs_path,
            self.config,
            list_rates(),
            clock=itertools.chain([0], itertools.repeat(3600)).__next__,
        )
        watch = self.watch
        watch.meter = SimpleNamespace(tick=meter.tick)
        watch._look_at_budget()
        return bool(watch.over_budget)

    def loss(self) -> float:
        """Return the loss of a few tokens that moved far, in two rows of unequal length."""
        told = token_loss(
            torch.tensor([-0.1, -2.0, -1.0, -3.0, -0.5]),
            torch.tensor([-1.2, -1.0, -1.0, -2.0, -1.0]),
            torch.tensor([1.0, -1.0, 0.5, -2.0, 1.5]),
            torch.tensor([0, 0, 0, 1, 1]),
            self.trainer.losses,
            rows_in_step=2,
            tokens_in_step=5,
        )
        return float(round(told.loss.item(), 5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A changed value, where it is seen, and what is seen then (DIFFERENT: not what was before)."""

    value: Any
    see: Callable[[Seen], Any]
    sees: Any
    beside: dict[str, Any] = field(default_factory=dict)
    """Other settings, before and after."""


class Different:
    """Not known before, but never what is seen without the change."""


DIFFERENT = Different()
LORA: dict[str, Any] = {"model.lora": {}}


def case(value: Any, see: Callable[[Seen], Any], sees: Any = DIFFERENT, **beside: Any) -> Case:
    named = {key.replace("__", "."): each for key, each in beside.items()}
    return Case(value=value, see=see, sees=sees, beside=named)


def lora(value: Any, see: Callable[[Any], Any], sees: Any) -> Case:
    return Case(value=value, see=lambda s: see(s.trainer.peft_config), sees=sees, beside=LORA)


def wandb_case(value: Any, name: str, **beside: Any) -> Case:
    def see(seen: Seen) -> Any:
        assert seen.learner.worker.rollout_buffer.empty()
        return seen.wandb.began[-1][name] if seen.wandb.began else None

    return case(value, see, value, **beside)


CASES: dict[str, Case] = {
    "env.name": case("tic_tac_toe", lambda s: type(s.env).__name__, "TicTacToe"),
    "env.args": case({"size": 5}, lambda s: s.env.params["size"], 5),
    "model.path": case("{other}", Seen.model, "{other}"),
    "model.name": case("policy", lambda s: s.gateway_word("--name"), "policy"),
    "model.lora.r": lora(20, lambda p: p.r, 20),
    "model.lora.alpha": lora(7, lambda p: p.lora_alpha, 7),
    "model.lora.dropout": lora(0.1, lambda p: p.lora_dropout, 0.1),
    "model.lora.target_modules": lora(["q_proj"], lambda p: p.target_modules, {"q_proj"}),
    "gateway.url": case("http://10.0.0.9:80", lambda s: s.opened()[0], "http://10.0.0.9:80/v1"),
    "gateway.api_key_env": case(KEY, lambda s: served_key(s.config), "Bearer ak_1"),
    "gateway.replicas": case(3, lambda s: s.gateway_word("--replicas"), "3"),
    "gateway.max_model_len": case(99, lambda s: s.gateway_word("--max-model-len"), "99"),
    "gateway.engine_args": case(
        ["--swap-space", "1"], lambda s: s.gateway_word("--"), "--swap-space"
    ),
    "gateway.timeout_s": case(7.0, lambda s: s.limits.timeout_s, 7.0),
    "gateway.wait_s": case(
        8.0,
        lambda s: (s.limits.wait_s, s.opened()[1], s.channel._publisher._wait_s),
        (8.0, 8.0, 8.0),
    ),
    "rollouts.strategy": case("NO_HISTORY", lambda s: repr(s.plan.strategy), "NoHistory()"),
    "rollouts.group_size": case(5, lambda s: (s.plan.group_size, s.args.num_generations), (5, 5)),
    "rollouts.groups_per_step": case(3, lambda s: len(admitted(s)), 6),
    "rollouts.temperature": case(
        0.5, lambda s: (s.asked["temperature"], s.args.temperature), (0.5, 0.5)
    ),
    "rollouts.max_tokens": case(
        9, lambda s: (s.asked["max_tokens"], s.player._model._max_prompt), (9, 2048 - 9)
    ),
    "rollouts.concurrency": case(2, lambda s: s.player._free._value, 2),
    "rollouts.attempts": case(5, lambda s: s.plan.attempts, 5),
    "reward.name": case("shaped", lambda s: type(s.player._reward).__name__, "Shaped"),
    "reward.args": case(
        {"turn_cost": -0.25}, lambda s: s.player._reward.turn_cost, -0.25, reward__name="shaped"
    ),
    "reward.attempts": case(4, lambda s: s.plan.reward_attempts, 4),
    "learn.mode": case(
        "sync",
        lambda s: (type(s.trainer), type(s.trainer.steps), s.channel._logprobs),
        (SyncStub, sync_mode.Turns, probe.plain_logprobs),
    ),
    "learn.steps": case(1, lambda s: (s.args.max_steps, s.steps.last, len(admitted(s))), (1, 1, 8)),
    "learn.loss": case("dr_grpo", Seen.loss),
    "learn.scale": case("batch", lambda s: s.steps.scale, "batch"),
    "learn.epsilon_low": case(0.9, Seen.loss),
    "learn.epsilon_high": case(0.9, Seen.loss),
    "learn.importance": case("sequence_mask", Seen.loss),
    "learn.importance_cap": case(1.1, Seen.loss, learn__importance="token_truncate"),
    "learn.max_staleness": case(2, lambda s: (len(admitted(s)), s.args.max_staleness), (24, 2)),
    "learn.max_row_tokens": case(
        100,
        lambda s: (
            *(s.steps.max_row_tokens, s.trainer.losses.max_row_tokens),
            s.player._model._max_prompt,
        ),
        (100, 100, 100 - 64),
    ),
    "learn.learning_rate": case(0.25, lambda s: s.args.learning_rate, 0.25),
    "learn.warmup_steps": case(6, lambda s: s.args.get_warmup_steps(100), 6),
    "learn.schedule": case("cosine", lambda s: s.args.lr_scheduler_type.value, "cosine"),
    "learn.weight_decay": case(0.125, lambda s: s.args.weight_decay, 0.125),
    "learn.beta2": case(0.5, lambda s: s.args.adam_beta2, 0.5),
    "learn.max_grad_norm": case(0.75, lambda s: s.args.max_grad_norm, 0.75),
    "learn.accumulation": case(
        4, lambda s: (s.args.gradient_accumulation_steps, s.steps.accumulation), (4, 4)
    ),
    "learn.gradient_checkpointing": case(True, lambda s: s.args.gradient_checkpointing, True),
    "learn.precision": case("bf16", lambda s: (s.args.bf16, s.channel._tolerance), (True, 0.15)),
    "learn.threads": case(7, lambda s: s.placed(), "7"),
    "learn.processes": case(2, lambda s: "--nproc-per-node" in s.commands.learner, True),
    "learn.seed": case(5, lambda s: (s.args.seed, s.plan.run_seed), (5, 5)),
    "learn.shuffle_rewards": case(True, lambda s: s.steps.shuffle_seed, 0),
    "publish.every": case(2, lambda s: (s.args.weight_sync_steps, len(admitted(s))), (2, 32)),
    "publish.channel": case(
        "full",
        lambda s: (s.channel._kind.value, "--lora" in s.commands.gateway),
        ("full", False),
        model__lora={},
    ),
    "publish.swap": case("wait", lambda s: s.channel._publisher._swap.value, "wait"),
    "publish.probes": case(2, lambda s: len(s.channel._sequences), 2),
    "publish.tolerance": case(0.01, lambda s: s.channel._tolerance, 0.01),
    "publish.keep_versions": case(2, lambda s: s.channel._publisher._keep_versions, 2),
    "checkpoints.every": case(7, lambda s: s.args.save_steps, 7),
    "checkpoints.keep": case(2, lambda s: vars(s.learner.saver._checkpoints)["keep"], 2),
    "track.wandb_project": wandb_case("p", "project"),
    "track.wandb_entity": wandb_case("team", "entity", track__wandb_project="p"),
    "track.wandb_mode": wandb_case("offline", "mode", track__wandb_project="p"),
    "track.run_name": wandb_case("mine", "name", track__wandb_project="p"),
    "gateway.gpu_share": case(0.25, lambda s: s.gateway_word("--gpu-memory-utilization"), "0.25"),
    "compute.gpu": case(
        "A100:4",
        lambda s: (s.hardware("gpu"), s.spent(), s.devices()),
        ("A100:4", 0.00241992, "1,2,3"),
    ),
    "compute.cpu": case(2.0, lambda s: (s.hardware("cpu"), s.spent()), (2.0, 0.00006172)),
    "compute.memory_mib": case(
        1024, lambda s: (s.hardware("memory"), s.spent()), (1024, 0.00005462)
    ),
    "compute.timeout_s": case(90, lambda s: s.hardware("timeout"), 90),
    "compute.retries": case(1, lambda s: s.hardware("retries").max_retries, 1),
    "compute.nodes": case(
        2,
        lambda s: s.asked_for,
        ("palaestra-train", "train_cluster"),
        gateway__url="http://h:1",
        learn__processes=2,
    ),
    "compute.region": case("us", lambda s: s.hardware("region"), "us"),
    "compute.app": case("mine", lambda s: s.asked_for, ("mine", "train_job_on_cpu")),
    "compute.secrets": case(
        {"hub": ["A"]}, lambda s: [repr(each) for each in s.hardware("secrets")]
    ),
    "volumes.root": case("/p", lambda s: sorted(s.hardware("volumes"))[0], "/p/cache"),
    "volumes.runs": case("v", lambda s: s.volumes["/palaestra/runs"], "v"),
    "volumes.policies": case("v", lambda s: s.volumes["/palaestra/policies"], "v"),
    "volumes.cache": case("v", lambda s: s.volumes["/palaestra/cache"], "v"),
    "volumes.data": case("v", lambda s: s.volumes["/palaestra/data"], "v"),
    "budget.usd": case(1e-9, Seen.over_budget, True),
    "budget.gpu_hours": case(1e-9, Seen.over_budget, True, compute__gpu="H100"),
    "notify.url_env": case(KEY, lambda s: refused(notify.check, s.config), True),
    "out": case("{other}", lambda s: created(s.config), "{other}"),
    "restarts": case(1, Seen.restarted, False),
}


def refused(check: Callable[[TrainConfig], None], config: TrainConfig) -> bool:
    try:
        check(config)
    except BadConfig:
        return True
    return False


def admitted(seen: Seen) -> list[int]:
    """Return the groups that may start before anything was learned."""
    return list(iter(seen.schedule.admit, None))


def served_key(config: TrainConfig) -> str | None:
    """Return what the gateway is asked for its models with."""
    return served.find_policy(config, "http://127.0.0.1:4321/v1").headers.get("Authorization")


async def models(*_: Any, **__: Any) -> Any:
    """In the place of evalkit's question for a server's models."""
    return {"m": {}}, ""


def supervised(_: TrainConfig, run: RunDir, *, resume: bool) -> int:
    """In the place of the parent: says what run it was given."""
    print(run.path)
    return 0


def created(config: TrainConfig) -> str:
    """Return where the command line makes a run of a config."""
    words = ["--env", config.env.name, "--model", config.model.path, "--out", config.out]
    with redirect_stdout(StringIO()) as said:
        assert cli.main(["grpo", *words]) == 0
    return str(Path(said.getvalue().strip()).parent)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Return the dotted names of all values; a section that may be left out has its own."""
    for name, field_ in model.model_fields.items():
        kinds = [field_.annotation, *getattr(field_.annotation, "__args__", ())]
        below = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if below:
            yield from keys(below[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


FIXED = ("rollouts.top_p", "model.overrides")
"""Keys that are gone once the config is resolved, or fixed: see the config's own tests."""


def test_every_key_has_a_case_and_every_case_a_key() -> None:
    assert sorted([*CASES, *FIXED]) == sorted(keys(TrainConfig))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: str(make_checkpoint(folder / name)) for name in ("model", "other")}


@pytest.fixture
def seen(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Seen]:
    """Return what looks at a config, with fakes for all that would be slow or far away."""
    monkeypatch.setattr(session, "GrpoTrainer", Stub)
    monkeypatch.setattr(sync_mode, "SyncTrainer", SyncStub)
    monkeypatch.setattr(supervise, "OwnGateway", FakeGateway)
    monkeypatch.setattr(supervise, "ensure_serves", lambda *_: None)
    monkeypatch.setattr(served, "probe", models)
    monkeypatch.setattr(cli, "_supervise", supervised)
    monkeypatch.setenv(KEY, "ak_1")

    def look(settings: dict[str, Any]) -> Seen:
        wandb = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        least = {
            "env.name": "key_door",
            "model.path": checkpoints["model"],
            "learn.precision": "fp32",
            "out": str(tmp_path),
        }
        return Seen(load(None, least | settings), tmp_path / "runs", wandb)

    return look


@pytest.mark.parametrize("key", sorted(CASES))
def test_it_changes_something(
    key: str, seen: Callable[..., Seen], checkpoints: dict[str, str]
) -> None:
    case_ = CASES[key]
    other = checkpoints["other"]
    value, sees = (other if it == "{other}" else it for it in (case_.value, case_.sees))
    before = case_.see(seen(case_.beside))
    after = case_.see(seen(case_.beside | {key: value}))
    assert after != before
    if sees is not DIFFERENT:
        assert after == sees


def test_an_adapter_is_trained_and_published_only_where_one_is_asked_for(
    seen: Callable[..., Seen],
) -> None:
    whole, adapted = seen({}), seen(LORA)
    assert whole.trainer.peft_config is None
    assert [each.channel._kind.value for each in (whole, adapted)] == ["full", "lora"]
    assert ["--lora" in each.commands.gateway for each in (whole, adapted)] == [False, True]
    assert seen(LORA | {"model.lora.r": 20}).gateway_word("--") == "--max-lora-rank"


@pytest.mark.parametrize(
    ("told", "environment", "expected"),
    [
        ({}, {}, "1"),
        ({"learn.threads": 3}, {}, "3"),
        ({}, {"OMP_NUM_THREADS": "9"}, None),
        ({"gateway.url": "http://h:1"}, {}, None),
        ({"gateway.url": "http://h:1", "learn.threads": 3}, {}, "3"),
    ],
)
def test_threads_are_one_beside_a_gateway_of_one_s_own(
    seen: Callable[..., Seen],
    told: dict[str, Any],
    environment: dict[str, str],
    expected: str | None,
) -> None:
    config = seen(told).config
    found = cores.place(config, cores=frozenset({0}), gpu=False, environment=environment)
    assert found.learner.get("OMP_NUM_THREADS") == expected


def test_threads_are_torch_s_too(
    seen: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(session, "find_policy", lambda *_: None)
    monkeypatch.setattr(
        session, "build", lambda *_: SimpleNamespace(worker=None, train=lambda: None)
    )
    session.learn(seen({"learn.threads": 3}).run, "http://h:1/v1")
    session.learn(seen({}).run, "http://h:1/v1")
    assert told == [3]
