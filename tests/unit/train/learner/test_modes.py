"""Both modes learn the same from the same rows: TRL's GRPOTrainer is what ours is held against."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.train.learner import test_grpo as one
from tests.unit.train.tinies import (
    WORDS,
    make_checkpoint,
    make_episode,
    make_group,
    make_row,
    make_tokenizer,
)
from train.learner.losses import LossSettings
from train.rollouts.rows import Group

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from train.learner import session, sync_mode
    from train.learner.grpo import GrpoTrainer
    from train.publish import probe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

FREE: dict[str, Any] = {"learn__max_grad_norm": 1e9, "rollouts__group_size": 3}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Do such small sums in one thread: on a busy machine several wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


def groups_of(checkpoint: Path, temperature: float) -> list[Group]:
    """Return two groups that teach something, with tokens of the env's between the policy's."""
    version = 10

    def row(*parts: tuple[list[int], int]) -> Any:
        return make_row([2, 3, 4], *parts)

    groups = [
        make_group(
            0,
            make_episode(1.0, row(([5, 1], version))),
            make_episode(0.25, row(([9, 6, 7, 1], version), ([8, 8], -1), ([6, 1], version))),
            make_episode(0.0, row(([9], version), ([7, 8, 9], -1), ([4], version))),
        ),
        make_group(
            1,
            make_episode(0.5, row(([6, 6, 6], version))),
            make_episode(0.0, row(([12, 1], version), ([3], -1), ([5, 1], version))),
            make_episode(0.75, row(([10], version))),
        ),
    ]
    return one.sampled_by(AutoModelForCausalLM.from_pretrained(checkpoint), groups, temperature)


def in_turns(checkpoint: Path, out: Path, worker: one.Played, **told: Any) -> Any:
    """Return TRL's trainer, whose steps are what the worker has."""
    config = sync_mode.settled(one.config_of(checkpoint, learn__mode="sync", **told))
    trainer = sync_mode.SyncTrainer(
        model=checkpoint,
        args=sync_mode.arguments(config, session.shared_arguments(config, out)),
        tokenizer=make_tokenizer(),
        worker=worker,
        publisher=one.Published(),
        checkpoints=one.Saved(out),
        losses=LossSettings.of(config.learn),
        callbacks=[],
    )
    plan = session._step_plan(config, 0, trainer)
    trainer.steps = sync_mode.Turns(plan, worker, on_step=lambda *_: None)
    return trainer


def learned(trainer: Any, train: Callable[[], Any]) -> tuple[dict[str, torch.Tensor], float]:
    """Return the gradient that the optimizer sees, and the loss that is logged."""
    seen: dict[str, torch.Tensor] = {}

    def look(*_: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(look)
    train()
    (loss,) = (log["loss"] for log in trainer.state.log_history if "loss" in log)
    return seen, loss


@pytest.mark.parametrize(
    "told",
    [
        {"learn__loss": "dapo"},
        {"learn__loss": "grpo", "learn__scale": "group"},
        {"learn__loss": "dr_grpo", "learn__scale": "batch", "learn__max_row_tokens": 64},
        {"learn__loss": "cispo", "learn__epsilon_high": 5.0},
        {"learn__loss": "dapo", "learn__importance": "token_truncate"},
        {"learn__loss": "grpo", "learn__importance": "sequence_mask"},
        {"learn__loss": "dapo", "learn__accumulation": 2},
        {"learn__loss": "dapo", "rollouts__temperature": 0.7},
    ],
    ids=lambda told: " ".join(str(value) for value in told.values()),
)
def test_the_gradients_of_both_modes_are_equal(
    checkpoint: Path, tmp_path: Path, told: dict[str, Any]
) -> None:
    groups = groups_of(checkpoint, told.get("rollouts__temperature", 1.0))
    ours = one.Run(checkpoint, tmp_path / "async", groups, **FREE, **told)
    found, loss = learned(ours.trainer, ours.train)
    trls = in_turns(checkpoint, tmp_path / "sync", one.Played(groups), **FREE, **told)
    expected, trls_loss = learned(trls, trls.train)
    assert loss == pytest.approx(trls_loss, abs=1e-5)
    assert found.keys() == expected.keys()
    assert max(float(each.abs().max()) for each in expected.values()) > 1e-2
    for name, each in expected.items():
        assert (found[name] - each).abs().max() < 1e-5, name


class Plays(one.Played):
    """Samples a word of the trainer's own weights at each take, and pays for GOOD."""

    def __init__(self, group_size: int) -> None:
        super().__init__([])
        self.trainer: Any = None
        self.shares: list[float] = []
        self._group_size = group_size
        self._dice = torch.Generator().manual_seed(0)

    def take(self, step: int) -> tuple[Group, ...]:
        with torch.no_grad():
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            if isinstance(self.trainer, GrpoTrainer):
                every = probe.logprobs(model, tuple((2, 3, word) for word in range(len(WORDS))))
                logprobs = torch.tensor([each[-1] for each in every])
            else:
                logprobs = model(torch.tensor([[2, 3]])).logits[0, -1].log_softmax(-1)
        groups = []
        for index in range(2 * (step - 1), 2 * step):
            words = torch.multinomial(
                logprobs.exp(), self._group_size, replacement=True, generator=self._dice
            ).tolist()
            self.shares.append(words.count(one.GOOD) / self._group_size)
            episodes = []
            for word in words:
                row = make_row([2, 3], ([word], 9 + step))
                row.logprobs[-1] = logprobs[word]
                episodes.append(make_episode(float(word == one.GOOD), row))
            groups.append(make_group(index, *episodes))
        return tuple(groups)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_both_modes_learn_what_pays(checkpoint: Path, tmp_path: Path, mode: str) -> None:
    told: dict[str, Any] = {"learn__steps": 25, "learn__learning_rate": 0.01}
    told["rollouts__group_size"] = 16
    worker = Plays(16)
    if mode == "sync":
        trainer = in_turns(checkpoint, tmp_path, worker, **told)
    else:
        run = one.Run(checkpoint, tmp_path, [], **told)
        trainer, run.trainer.steps._worker = run.trainer, worker
    worker.trainer = trainer
    trainer.train()
    assert sum(worker.shares[:8]) / 8 < 0.3
    assert sum(worker.shares[-8:]) / 8 > 0.8
