"""TRL's own trainer on our groups: what it is told, what a row becomes, what it refuses."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from train.config import Importance, Loss, Scale, TrainConfig, load
from train.errors import BadModel, RolloutFailed
from train.learner import sync_rows
from train.learner.losses import LossSettings
from train.rollouts.advantages import with_advantages
from train.rollouts.renderer import ChatRenderer
from train.rollouts.rows import Episode, Group, Row
from train.rollouts.schedule import Schedule
from train.rollouts.seeds import group_seed
from train.rollouts.worker import RolloutWorker

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from train.learner import attention, session, sync_mode
    from train.learner.steps import StepPlan
    from train.publish import probe

WORDS = ["<pad>", "<end>", *(f"w{n}" for n in range(14))]
FILLER = 1


def config_of(**overrides: Any) -> TrainConfig:
    told = {
        "env.name": "key_door",
        "model.path": "m",
        "learn.mode": "sync",
        "rollouts.groups_per_step": 2,
        "rollouts.group_size": 3,
    }
    return load(None, told | {key.replace("__", "."): value for key, value in overrides.items()})


def row_of(prompt: list[int], *parts: tuple[list[int], bool]) -> Row:
    """Return a row: a prompt, then ids of the policy (True) and of the env (False)."""
    ids = prompt + [id_ for part, _ in parts for id_ in part]
    trained = [0] * len(prompt) + [int(ours) for part, ours in parts for _ in part]
    return Row(
        ids=np.array(ids, np.int32),
        trained=np.array(trained, np.int8),
        logprobs=np.array([-0.5 * at if own else 0 for at, own in enumerate(trained)], np.float32),
        versions=np.array([4 if own else -1 for own in trained], np.int32),
    )


def episode(reward: float = 0.0, rows: tuple[Row, ...] | None = None, **told: Any) -> Episode:
    if rows is None:
        rows = (row_of([5, 6, 7], ([8, 1], True), ([9], False), ([10, 1], True)),)
    about = {"env_seed": 2**32, "repetition": 0, "env_return": reward, "turns": 2} | told
    return Episode(rows=rows, reward=reward, success=reward > 0, **about)


def group(index: int, *episodes: Episode, dropped: int = 0) -> Group:
    return Group(index=index, env_seed=2**32, episodes=episodes, started_version=0, dropped=dropped)


class TestRows:
    def test_a_row_is_cut_where_the_policy_begins(self) -> None:
        row = row_of([5, 6, 7], ([8, 1], True), ([9, 9], False), ([10], True))
        prompt, completion, mask, logprobs = sync_rows.split(row)
        assert prompt == [5, 6, 7]
        assert completion == [8, 1, 9, 9, 10]
        assert mask == [1, 1, 0, 0, 1]
        assert logprobs == [-1.5, -2.0, 0.0, 0.0, -3.5]

    @given(
        prompt=st.lists(st.integers(2, 99), min_size=1, max_size=9),
        parts=st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=5), min_size=1),
    )
    def test_nothing_is_lost(self, prompt: list[int], parts: list[list[int]]) -> None:
        row = row_of(prompt, *((part, at % 2 == 0) for at, part in enumerate(parts)))
        before, after, mask, logprobs = sync_rows.split(row)
        assert before == prompt
        assert before + after == row.ids.tolist()
        assert [0] * len(before) + mask == row.trained.tolist()
        assert [0.0] * len(before) + logprobs == row.logprobs.tolist()
        assert len(after) == len(mask) == len(logprobs)

    def test_a_line_for_each_episode_with_its_reward(self) -> None:
        told = sync_rows.assemble(
            [group(0, episode(1.0), episode(0.5)), group(1, episode(0.0), episode(2.0))], 2, FILLER
        )
        assert told["told_reward"] == [1.0, 0.5, 0.0, 2.0]
        assert {len(each) for each in told.values()} == {4}
        assert told["env_mask"][0] == [1, 1, 0, 1, 1]
        assert all(isinstance(id_, int) for ids in told["completion_ids"] for id_ in ids)

    def test_an_episode_without_a_score_has_no_reward_and_is_not_trained_on(self) -> None:
        told = sync_rows.assemble([group(0, episode(1.0), episode(0.5), dropped=1)], 3, FILLER)
        assert told["told_reward"] == [1.0, 0.5, None]
        assert told["completion_ids"][2] == [FILLER]
        assert told["env_mask"][2] == [0]

    def test_an_episode_without_a_call_keeps_its_reward(self) -> None:
        told = sync_rows.assemble([group(0, episode(1.0), episode(-1.0, rows=()))], 2, FILLER)
        assert told["told_reward"] == [1.0, -1.0]
        assert told["env_mask"][1] == [0]

    def test_several_rows_are_refused(self) -> None:
        two = episode(1.0, rows=(row_of([5], ([1], True)),) * 2)
        with pytest.raises(RolloutFailed, match=r"has 2 rows.*learn\.mode=async"):
            sync_rows.assemble([group(0, two, episode())], 2, FILLER)

    def test_the_reward_function_returns_what_it_was_given(self) -> None:
        told = sync_rows.told_reward(
            told_reward=[1.0, None], prompts=["a", "b"], trainer_state=None
        )
        assert told == [1.0, None]


class TestPrompts:
    def test_they_number_the_groups_of_all_steps(self) -> None:
        assert sync_mode.prompts(3, 2)["prompt"] == ["0", "1", "2", "3", "4", "5"]

    @pytest.mark.parametrize("step", [1, 2, 57])
    def test_a_step_is_named_by_its_prompts(self, step: int) -> None:
        first = (step - 1) * 2
        assert sync_rows.step_of([str(first)] * 3 + [str(first + 1)] * 3, 3) == step

    @pytest.mark.parametrize("found", [["1", "1", "2", "2"], ["0", "1", "0", "1"], ["2", "2", "0"]])
    def test_others_are_refused(self, found: list[str]) -> None:
        with pytest.raises(RolloutFailed, match="the prompts of one step"):
            sync_rows.step_of(found, 2)

    def test_a_step_has_the_env_seeds_of_async_mode(self) -> None:
        config = sync_mode.settled(config_of(learn__steps=3, learn__max_staleness=2))
        schedule = Schedule(
            groups_per_step=2,
            max_staleness=config.learn.max_staleness,
            publish_every=config.publish.every,
            steps=3,
        )
        asynchronous = Schedule(groups_per_step=2, max_staleness=2, publish_every=1, steps=3)
        played = []
        for step in range(3):
            played.append([group_seed(7, index) for index in iter(schedule.admit, None)])
            schedule.published(step + 1)
        ahead = [group_seed(7, index) for index in iter(asynchronous.admit, None)]
        assert [len(each) for each in played] == [2, 2, 2]  # none before its weights are live
        assert [seed for each in played for seed in each] == ahead


class Fixed:
    """Always has the same groups."""

    def take(self, step: int) -> tuple[Group, ...]:
        return tuple(
            group(at, *(episode(float(3 * at + number)) for number in range(3))) for at in range(4)
        )


class TestTurns:
    def turns(self, seed: int | None) -> tuple[Any, list[tuple[int, Any]]]:
        told: list[tuple[int, Any]] = []
        plan = StepPlan(
            first=1,
            last=9,
            accumulation=1,
            scale=Scale.GROUP,
            shuffle_seed=seed,
            max_row_tokens=64,
            pad_token_id=0,
        )
        return sync_mode.Turns(plan, Fixed(), on_step=lambda *what: told.append(what)), told

    def rewards(self, groups: tuple[Group, ...]) -> list[float]:
        return [each.reward for one in groups for each in one.episodes]

    def test_a_step_is_told_and_returned(self) -> None:
        turns, told = self.turns(None)
        groups = turns.take(5)
        assert told == [(5, groups)]
        assert self.rewards(groups) == [float(n) for n in range(12)]

    def test_shuffled_as_in_async_mode(self) -> None:
        turns, _ = self.turns(3)
        expected = with_advantages(Fixed().take(5), Scale.GROUP, random.Random("3|5"))
        assert self.rewards(turns.take(5)) == self.rewards(expected)
        assert self.rewards(turns.take(6)) != self.rewards(expected)
        assert sorted(self.rewards(expected)) == [float(n) for n in range(12)]


class TestArguments:
    def arguments(self, **overrides: Any) -> Any:
        config = config_of(**overrides)
        return sync_mode.arguments(config, session.shared_arguments(config, Path("out")))

    def test_the_optimizer_is_told_what_async_mode_tells_it(self) -> None:
        config = config_of(
            learn__learning_rate=3e-4,
            learn__schedule="cosine",
            learn__warmup_steps=5,
            learn__beta2=0.95,
            learn__max_grad_norm=0.3,
            learn__weight_decay=0.01,
            learn__seed=9,
            learn__accumulation=2,
            rollouts__temperature=0.7,
            checkpoints__every=7,
        )
        shared = session.shared_arguments(config, Path("out"))
        sync, other = sync_mode.arguments(config, shared), session.arguments(config, shared)
        for name in shared:
            assert getattr(sync, name) == getattr(other, name), name
        assert (sync.learning_rate, sync.lr_scheduler_type, sync.warmup_steps) == (
            3e-4,
            "cosine",
            5,
        )
        assert (sync.adam_beta2, sync.max_grad_norm, sync.seed) == (0.95, 0.3, 9)
        assert (sync.temperature, sync.save_steps, sync.report_to) == (0.7, 7, [])

    def test_a_batch_is_a_step_in_order(self) -> None:
        told = self.arguments(learn__accumulation=2, rollouts__groups_per_step=4, learn__steps=11)
        assert told.per_device_train_batch_size == 6
        assert told.generation_batch_size == 12
        assert told.num_generations == 3
        assert told.num_iterations == 1
        assert told.max_steps == 11
        assert told.shuffle_dataset is False

    @pytest.mark.parametrize("loss", list(Loss))
    def test_the_loss_has_trls_name(self, loss: Loss) -> None:
        told = self.arguments(
            learn__loss=loss.value,
            learn__epsilon_high=5.0,
            learn__epsilon_low=0.1,
            learn__max_row_tokens=99,
            learn__scale="batch",
        )
        assert told.loss_type == loss.value
        assert (told.epsilon, told.epsilon_high, told.beta) == (0.1, 5.0, 0.0)
        assert told.max_completion_length == 99
        assert told.scale_rewards == "batch"

    def test_no_correction_unless_asked_for(self) -> None:
        assert self.arguments().vllm_importance_sampling_correction is False

    @pytest.mark.parametrize(
        ("mode", "lowest"),
        [
            (Importance.TOKEN_TRUNCATE, None),
            (Importance.SEQUENCE_TRUNCATE, None),
            (Importance.TOKEN_MASK, 0.25),
            (Importance.SEQUENCE_MASK, 0.25),
        ],
    )
    def test_the_correction_has_trls_name(self, mode: Importance, lowest: float | None) -> None:
        told = self.arguments(learn__importance=mode.value, learn__importance_cap=4.0)
        assert told.vllm_importance_sampling_correction is True
        assert told.vllm_importance_sampling_mode == mode.value
        assert told.vllm_importance_sampling_clip_max == 4.0
        assert told.vllm_importance_sampling_clip_min == lowest


class TestRefusals:
    def test_all_else_is_taken_and_staleness_is_none(self) -> None:
        config = config_of(learn__max_staleness=3, learn__learning_rate=0.5)
        settled = sync_mode.settled(config)
        assert settled.learn.max_staleness == 0
        assert settled.learn.learning_rate == 0.5
        assert settled.rollouts == config.rollouts

    def test_a_template_that_edits_replies(self) -> None:
        edits = (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
        keeps = edits.replace(" | upper", "")
        sync_mode.check_template(ChatRenderer(tokenizer_of(keeps)), "m")
        drops = keeps.replace("m['content']", "'' if m['role'] == 'assistant' else m['content']")
        with pytest.raises(BadModel, match=r"learn\.mode=async"):
            sync_mode.check_template(ChatRenderer(tokenizer_of(drops)), "m")


def tokenizer_of(template: str = "{{ messages }}") -> PreTrainedTokenizerFast:
    bare = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(WORDS)}, "<pad>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", eos_token="<end>", chat_template=template
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    logging.disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)
    return folder


def test_both_ways_to_ask_for_logprobs_agree(checkpoint: Path) -> None:
    attention.register()
    plain = AutoModelForCausalLM.from_pretrained(checkpoint)
    packed = AutoModelForCausalLM.from_pretrained(
        checkpoint, attn_implementation=attention.TREE_ATTENTION
    )
    sequences = ((5, 6, 7, 2), (9, 1), (5, 6, 3, 3, 4, 8, 11))
    told = probe.plain_logprobs(plain.train(), sequences)
    assert [len(each) for each in told] == [3, 1, 6]
    assert plain.training
    for ours, theirs in zip(told, probe.logprobs(packed, sequences), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


class Played(RolloutWorker):
    """Makes up episodes, with the logprobs of the trainer's weights as they are."""

    def __init__(self) -> None:
        async def connect() -> Any:
            raise AssertionError("nobody plays")

        super().__init__(
            Schedule(groups_per_step=2, max_staleness=0, publish_every=1, steps=9), connect
        )
        self.trainer: Any = None
        self.log: list[str] = []

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")

    def published(self, step: int, version: int) -> None:
        self.log.append(f"live {step}")

    def take(self, step: int) -> tuple[Group, ...]:
        self.log.append(f"take {step}")
        made = np.random.default_rng(step)
        groups = []
        for index in ((step - 1) * 2, (step - 1) * 2 + 1):
            episodes = [self.episode(made, float(number)) for number in range(3)]
            groups.append(group(index, *(episodes if index else episodes[:2]), dropped=not index))
        return tuple(groups)

    def episode(self, made: np.random.Generator, reward: float) -> Episode:
        lengths = made.integers(1, 5, 4).tolist()
        prompt, *parts = (made.integers(2, len(WORDS), length).tolist() for length in lengths)
        row = row_of(prompt, *((part, at != 1) for at, part in enumerate(parts)))
        (logprobs,) = probe.plain_logprobs(self.trainer.model, (tuple(row.ids.tolist()),))
        every = np.array([0.0, *logprobs], np.float32) * row.trained
        return episode(
            reward,
            (Row(ids=row.ids, trained=row.trained, logprobs=every, versions=row.versions),),
        )


class Saved:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: Any, step: int) -> None:
        at = self.folder / f"saved-{step}"
        at.mkdir()
        trainer.write(at)


class Published:
    def __init__(self) -> None:
        self.sent: list[tuple[int, torch.Tensor]] = []

    def send(self, trainer: Any, step: int) -> int:
        name, tensor = next(iter(trainer.full_tensors()))
        assert name == "model.embed_tokens.weight"
        self.sent.append((step, tensor.clone()))
        return 10 + step


Train = Callable[..., tuple[Any, Played, Published, list[dict[str, Any]]]]


@pytest.fixture
def trained(checkpoint: Path, tmp_path: Path) -> Train:
    """Return what trains some steps, and what was logged."""

    def train(
        resume: Path | None = None, **overrides: Any
    ) -> tuple[Any, Played, Published, list[dict[str, Any]]]:

        config = config_of(
            model__path=str(checkpoint), learn__steps=3, learn__learning_rate=0.01, **overrides
        )
        worker, published, told = Played(), Published(), []
        trainer = sync_mode.SyncTrainer(
            model=checkpoint,
            args=sync_mode.arguments(config, session.shared_arguments(config, tmp_path)),
            tokenizer=tokenizer_of(),
            worker=worker,
            publisher=published,
            checkpoints=Saved(tmp_path),
            losses=LossSettings.of(config.learn),
            callbacks=[],
        )
        worker.trainer = trainer
        plan = StepPlan(
            first=1,
            last=3,
            accumulation=1,
            scale=config.learn.scale,
            max_row_tokens=64,
            pad_token_id=0,
        )
        trainer.steps = sync_mode.Turns(
            plan, worker, on_step=lambda step, groups: told.append({"step": step, "groups": groups})
        )
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return trainer, worker, published, told

    return train


class TestTraining:
    def test_play_learn_publish_in_turns(self, trained: Train) -> None:
        trainer, worker, published, told = trained()
        assert worker.log == [
            *("live 0", "start", "take 1"),
            *("live 1", "take 2"),
            *("live 2", "take 3"),
            *("live 3", "stop"),
        ]
        assert [step for step, _ in published.sent] == [0, 1, 2, 3]
        assert trainer.live_version == 13
        assert not torch.equal(published.sent[0][1], published.sent[3][1])
        assert [each["step"] for each in told] == [1, 2, 3]

    def test_each_logprob_stands_at_its_token(self, trained: Train) -> None:
        trainer, _, _, told = trained(learn__importance="token_mask")
        diagnostics, gaps = trainer.take_diagnostics()
        tokens = sum(
            int(row.trained.sum())
            for each in told
            for one in each["groups"]
            for played in one.episodes
            for row in played.rows
        )
        assert len(gaps) == diagnostics.tokens == tokens
        assert float(gaps.max()) < 1e-5
        assert diagnostics.ratio_mean == pytest.approx(1, abs=1e-4)
        assert diagnostics.masked == 0

    def test_what_is_logged(self, trained: Train) -> None:
        trainer, *_ = trained(learn__accumulation=2)
        logs = [each for each in trainer.state.log_history if "loss" in each]
        assert len(logs) == 3
        for name in ("entropy", "grad_norm", "learning_rate", "perf/rollout_wait_s"):
            assert all(name in each for each in logs), name
        assert all(0 < each["perf/fwd_bwd_s"] < 5 for each in logs)
        assert all(0 < each["perf/optimizer_s"] < 5 for each in logs)

    def test_resumes_at_the_groups_that_follow(self, trained: Train, tmp_path: Path) -> None:
        trained(checkpoints__every=2)
        folder = tmp_path / "saved-2"
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= {
            file.name for file in folder.iterdir()
        }
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2
        (tmp_path / "saved-3").rename(tmp_path / "first-3")
        _, worker, published, _ = trained(resume=folder, checkpoints__every=2)
        assert worker.log == ["live 2", "start", "take 3", "live 3", "stop"]
        assert [step for step, _ in published.sent] == [2, 3]
