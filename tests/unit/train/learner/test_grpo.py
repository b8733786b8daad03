"""The trainer on a tiny network: what a step does to the weights, and when they are published."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.unit.train.tinies import (
    make_checkpoint,
    make_episode,
    make_group,
    make_row,
    make_tokenizer,
)
from train.config import TrainConfig, load
from train.learner.losses import LossSettings
from train.rollouts.rows import Group, Row
from train.rollouts.schedule import Schedule
from train.rollouts.worker import RolloutWorker

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from train.learner import session
    from train.learner.grpo import GrpoTrainer
    from train.learner.steps import StepPlan, Steps

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

GOOD, BAD = 5, 9
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Keep what is loaded out of garbage collections: each training ends with one."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


def plain_logprobs(model: Any, row: Row, temperature: float = 1.0) -> list[float]:
    """Return what transformers says of a row that nobody has packed: 0 for its first token."""
    with torch.no_grad():
        logits = model(torch.tensor([row.ids.tolist()])).logits[0].double() / temperature
    every = logits.log_softmax(-1)
    return [0.0, *(float(every[at, id_]) for at, id_ in enumerate(row.ids[1:].tolist()))]


def sampled_by(model: Any, groups: Sequence[Group], temperature: float = 1.0) -> list[Group]:
    """Return the groups with the model's own logprobs as the sampler's."""

    def told(row: Row) -> Row:
        every = np.array(plain_logprobs(model, row, temperature), np.float32) * row.trained
        return replace(row, logprobs=every)

    return [
        replace(
            group,
            episodes=tuple(
                replace(episode, rows=tuple(map(told, episode.rows))) for episode in group.episodes
            ),
        )
        for group in groups
    ]


def good_and_bad(version: int = 10) -> list[Group]:
    """Two groups in which it is good to say GOOD; the second has rows of several parts."""
    return [
        make_group(
            0,
            make_episode(1.0, make_row([2, 3], ([GOOD, 1], version))),
            make_episode(0.0, make_row([2, 3], ([BAD, 1], version))),
        ),
        make_group(
            1,
            make_episode(1.0, make_row([2, 3, 4], ([GOOD], version), ([7, 8], -1), ([6], version))),
            make_episode(0.0, make_row([2, 3, 4], ([BAD], version)), make_row([3], ([7], version))),
            make_episode(1.0, make_row([2, 3, 4], ([GOOD, 6], version))),
        ),
    ]


class Played(RolloutWorker):
    """Has the same groups for each step."""

    def __init__(self, groups: Sequence[Group]) -> None:
        async def connect() -> Any:
            raise AssertionError("nobody plays")

        schedule = Schedule(groups_per_step=2, max_staleness=0, publish_every=1, steps=9)
        super().__init__(schedule, connect)
        self.groups = tuple(groups)
        self.log: list[str] = []

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")

    def published(self, step: int, version: int) -> None:
        self.log.append(f"{step} live as {version}")

    def take(self, step: int) -> tuple[Group, ...]:
        self.log.append(f"take {step}")
        return self.groups


class Published:
    """Is given the weights; the version is ten more than the step."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, torch.Tensor]]] = []

    def send(self, trainer: Any, step: int) -> int:
        self.sent.append((step, {name: each.clone() for name, each in trainer.full_tensors()}))
        return 10 + step


class Saved:
    """Publishes, as the real one does; writes what is to be gone on from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[int] = []

    def save(self, trainer: Any, step: int) -> None:
        trainer.send()
        self.steps.append(step)
        if step == trainer.args.max_steps:
            return
        folder = self.folder / f"saved-{step}"
        folder.mkdir(exist_ok=True)
        trainer.write(folder)


def config_of(checkpoint: Path, **overrides: Any) -> TrainConfig:
    told = {
        "env.name": "key_door",
        "model.path": str(checkpoint),
        "rollouts.groups_per_step": 2,
        "rollouts.group_size": 2,
        "learn.steps": 1,
        "learn.learning_rate": 0.01,
        "learn.scale": "none",
    }
    return load(None, told | {key.replace("__", "."): value for key, value in overrides.items()})


class Run:
    """A trainer and all that it talks to."""

    def __init__(
        self,
        checkpoint: Path,
        out: Path,
        groups: Sequence[Group],
        *,
        peft: Any = None,
        shared: Mapping[str, Any] | None = None,
        **told: Any,
    ) -> None:
        config = config_of(checkpoint, **told)
        shared = session.shared_arguments(config, out) | dict(shared or {})
        self.worker, self.published, self.saved = Played(groups), Published(), Saved(out)
        self.trainer = GrpoTrainer(
            model=checkpoint,
            args=session.arguments(config, shared),
            tokenizer=make_tokenizer(),
            worker=self.worker,
            publisher=self.published,
            checkpoints=self.saved,
            losses=LossSettings.of(config.learn),
            callbacks=[],
            peft_config=peft,
        )
        plan = session._step_plan(config, 0, self.trainer)
        assert isinstance(plan, StepPlan)
        self.trainer.steps = Steps(
            plan, self.worker, on_step=lambda *_: None, metrics=self.trainer.sink
        )

    def train(self) -> Run:
        self.trainer.train()
        return self


Make = Callable[..., Run]


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Make:
    """Return what makes a run; the sampler's logprobs are the checkpoint's own."""
    made: list[Run] = []

    def make(groups: Sequence[Group] | None = None, **told: Any) -> Run:
        plain = AutoModelForCausalLM.from_pretrained(checkpoint)
        temperature = told.get("rollouts__temperature", 1.0)
        own = sampled_by(plain, groups or good_and_bad(), temperature)
        made.append(Run(checkpoint, tmp_path / str(len(made)), own, **told))
        return made[-1]

    return make


def likelihoods(weights: dict[str, torch.Tensor], checkpoint: Path) -> tuple[float, float]:
    """Return the logprobs of GOOD and of BAD after w0 w1 under published weights."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.load_state_dict(weights, strict=False)
    rows = (make_row([2, 3], ([id_], 0)) for id_ in (GOOD, BAD))
    good, bad = (plain_logprobs(model, row)[-1] for row in rows)
    return good, bad


@pytest.mark.parametrize(
    ("loss", "peft"), [("grpo", None), ("dr_grpo", None), ("cispo", None), ("dapo", LORA)]
)
def test_what_went_well_gets_likelier(
    run: Make, checkpoint: Path, loss: str, peft: LoraConfig | None
) -> None:
    cap = {"learn__epsilon_high": 5.0} if loss == "cispo" else {}
    groups = [
        make_group(
            index,
            make_episode(1.0, make_row([2, 3], ([GOOD], 10))),
            make_episode(0.0, make_row([2, 3], ([BAD], 10))),
        )
        for index in range(2)
    ]
    done = run(groups, peft=peft, learn__loss=loss, learn__learning_rate=3e-3, **cap).train()
    (_, before), (_, after) = done.published.sent
    if peft is not None:  # the adapter is folded in by whoever publishes
        assert all(torch.equal(before[name], after[name]) for name in before)
        done.trainer.model.merge_adapter()
        after = dict(done.trainer.full_tensors())
    good, bad = likelihoods(before, checkpoint)
    good_now, bad_now = likelihoods(after, checkpoint)
    assert good_now > good + 1e-3
    assert bad_now < bad - 1e-3


def test_without_a_difference_nothing_is_learned(run: Make) -> None:
    flat = [
        replace(group, episodes=tuple(replace(e, reward=1.0) for e in group.episodes))
        for group in good_and_bad()
    ]
    done = run(flat).train()
    (_, before), (_, after) = done.published.sent
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_plain_forward_pass(
    run: Make, checkpoint: Path, temperature: float
) -> None:
    made = run(rollouts__temperature=temperature)
    (batch,) = made.trainer.steps
    found, entropy = made.trainer._forward(made.trainer.model, batch)
    expected = batch["old_log_probs"][batch["token_index"] >= 0]
    assert len(found) == 10
    assert (found - expected).abs().max() < 1e-5
    assert bool((entropy > 0).all())


def test_the_gap_is_nothing_where_the_live_weights_sampled(run: Make) -> None:
    done = run().train()  # version 10 is what is live in the first step
    diagnostics, gaps = done.trainer.take_diagnostics()
    assert len(gaps) == diagnostics.tokens == 10
    assert float(gaps.max()) < 1e-5
    assert diagnostics.ratio_mean == pytest.approx(1, abs=1e-5)
    assert diagnostics.kl == pytest.approx(0, abs=1e-5)
    again, none = done.trainer.take_diagnostics()
    assert (again.tokens, len(none)) == (0, 0)


def test_the_gap_is_that_of_the_live_version_alone(run: Make) -> None:
    groups = [good_and_bad(version=10)[0], good_and_bad(version=9)[1]]
    diagnostics, gaps = run(groups).train().trainer.take_diagnostics()
    assert (diagnostics.tokens, len(gaps)) == (10, 4)


def test_weights_that_are_not_live_have_no_gap(run: Make) -> None:
    """With two steps between versions, the second step trains on weights that nobody serves."""
    made = run(learn__steps=2, publish__every=2)
    told = []
    made.trainer.steps._on_step = lambda *_: told.append(made.trainer.take_diagnostics())
    made.train()
    told.append(made.trainer.take_diagnostics())
    assert [diagnostics.tokens for diagnostics, _ in told] == [0, 10, 10]
    assert [len(gaps) for _, gaps in told] == [0, 10, 0]
    assert told[2][0].ratio_mean != pytest.approx(1, abs=1e-4)


def test_each_step_is_published_once_and_before_the_next_is_taken(run: Make) -> None:
    done = run(learn__steps=3, checkpoints__every=2).train()
    assert done.worker.log == [
        *("0 live as 10", "start", "take 1", "1 live as 11", "take 2", "2 live as 12"),
        *("take 3", "3 live as 13", "stop"),
    ]
    assert [step for step, _ in done.published.sent] == [0, 1, 2, 3]
    assert done.saved.steps == [2, 3]
    assert done.trainer.live_version == 13
    done.trainer.send()
    assert len(done.published.sent) == 4


def test_what_is_saved_is_published_whatever_the_pace(run: Make) -> None:
    done = run(learn__steps=3, publish__every=2).train()
    assert [step for step, _ in done.published.sent] == [0, 2, 3]
    assert done.saved.steps == [3]


def test_what_is_sent_is_the_checkpoint_under_its_own_names(run: Make, checkpoint: Path) -> None:
    made = run()
    sent = dict(made.trainer.full_tensors())
    expected = dict(AutoModelForCausalLM.from_pretrained(checkpoint).named_parameters())
    assert sent.keys() == expected.keys()
    assert all(torch.equal(sent[name], expected[name]) for name in expected)
    assert not made.trainer.is_adapter()
    adapted = run(peft=LORA).trainer
    assert adapted.is_adapter()
    assert {name for name, _ in adapted.full_tensors()} == expected.keys()


def gradient(made: Run) -> dict[str, torch.Tensor]:
    """Return the gradient that the optimizer would see, micro-batches and clipping included."""
    seen: dict[str, torch.Tensor] = {}
    trainer = made.trainer
    trainer.create_optimizer()

    def look(*_: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

    trainer.optimizer.register_step_pre_hook(look)
    made.train()
    return seen


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_add_up_to_the_same_gradient(run: Make, loss: str) -> None:
    free = {"learn__loss": loss, "learn__max_grad_norm": 1e9, "learn__scale": "batch"}
    whole = gradient(run(**free))
    cut = gradient(run(**free, learn__accumulation=2))
    assert whole.keys() == cut.keys()
    assert max(float(each.abs().max()) for each in whole.values()) > 1e-3
    for name, each in whole.items():
        assert (each - cut[name]).abs().max() < 5e-6, name


def test_the_gradient_is_that_of_the_formula(run: Make, checkpoint: Path) -> None:
    """Where the ratio is 1, DAPO's loss falls as the mean of advantage times logprob grows."""
    made = run(learn__max_grad_norm=1e9)
    found = gradient(made)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    terms = []
    for group in made.worker.groups:
        mean = np.mean([episode.reward for episode in group.episodes])
        for episode in group.episodes:
            for row in episode.rows:
                ids = torch.tensor(row.ids.tolist())
                every = model(ids[None]).logits[0].log_softmax(-1)[:-1]
                chosen = every.gather(1, ids[1:, None])[:, 0]
                mask = torch.tensor(row.trained[1:].tolist())
                terms.append((episode.reward - mean) * chosen[mask == 1])
    (-torch.cat(terms).mean()).backward()
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter.grad).abs().max() < 1e-5, name


def test_a_run_goes_on_where_it_was_saved(run: Make) -> None:
    whole = run(learn__steps=2, checkpoints__every=1).train()
    again = run(learn__steps=2)
    plan = replace(again.trainer.steps._plan, first=2)
    again.trainer.steps._plan = plan
    again.trainer.train(resume_from_checkpoint=str(whole.saved.folder / "saved-1"))
    assert again.worker.log == ["1 live as 11", "start", "take 2", "2 live as 12", "stop"]
    (_, expected), (_, found) = whole.published.sent[-1], again.published.sent[-1]
    for name, each in expected.items():
        assert torch.equal(each, found[name]), name
