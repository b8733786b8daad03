"""From groups to micro-batches: every loss term at its token, with its version and advantage."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.train.tinies import make_episode, make_group, make_row
from train.config import Scale
from train.errors import RolloutFailed
from train.rollouts.advantages import with_advantages
from train.rollouts.rows import Group, Row

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from train.learner.steps import StepPlan, Steps
    from train.publish import processes

Term = tuple[int, int, float, int, float]
"""Of one loss term: its token, the one before it, the sampler's logprob, version, advantage."""


class Worker:
    """Has the groups of each step, and remembers what was asked for."""

    def __init__(self, *each: Sequence[Group]) -> None:
        self.each = each
        self.asked: list[int] = []

    def take(self, step: int) -> tuple[Group, ...]:
        self.asked.append(step)
        return tuple(self.each[(step - 1) % len(self.each)])


def batches_of(
    groups: Sequence[Group],
    *,
    accumulation: int = 1,
    longest: int = 64,
    shuffle_seed: int | None = None,
    scale: Scale = Scale.NONE,
    **told: Any,
) -> list[dict[str, Any]]:
    plan = StepPlan(
        first=1,
        last=1,
        accumulation=accumulation,
        scale=scale,
        shuffle_seed=shuffle_seed,
        max_row_tokens=longest,
        pad_token_id=0,
    )
    made = Steps(plan, Worker(groups), on_step=lambda *_: None, metrics=defaultdict(list), **told)
    return list(made)


def terms_of(batch: dict[str, Any]) -> list[Term]:
    """Read the loss terms of one process's micro-batch as the trainer does."""
    real = batch["attention_mask"].bool()
    ids, labels = batch["input_ids"][real].tolist(), batch["shift_labels"][real].tolist()
    selected = batch["token_index"] >= 0
    columns = [batch[name][selected] for name in ("token_index", "old_log_probs", "advantages")]
    at, logprobs, advantages = (column.tolist() for column in columns)
    versions = batch["token_versions"].tolist()
    return [
        (labels[place], ids[place], round(logprob, 4), version, round(advantage, 4))
        for place, logprob, version, advantage in zip(
            at, logprobs, versions, advantages, strict=True
        )
    ]


def expected_terms(groups: Sequence[Group]) -> list[Term]:
    """The same of rows that nobody has packed."""
    return [
        (
            int(row.ids[at]),
            int(row.ids[at - 1]),
            round(float(row.logprobs[at]), 4),
            int(row.versions[at]),
            round(episode.advantage, 4),
        )
        for group in with_advantages(groups, Scale.NONE)
        if not group.is_flat
        for episode in group.episodes
        for row in episode.rows
        for at in range(len(row.ids))
        if row.trained[at]
    ]


def two_groups() -> list[Group]:
    """Shared prompts, several rows of an episode, tokens of two versions in a row."""
    return [
        make_group(
            0,
            make_episode(1.0, make_row([2, 3], ([4, 5], 7), ([6], -1), ([7, 1], 8))),
            make_episode(0.0, make_row([2, 3], ([4, 6, 1], 8))),
            make_episode(0.0, make_row([2, 3], ([4, 5], 7), ([6], -1), ([9], 8))),
        ),
        make_group(
            1,
            make_episode(0.0, make_row([2, 8], ([1], 8)), make_row([2, 8, 8], ([5, 1], 9))),
            make_episode(2.0, make_row([10], ([11], 9))),
        ),
    ]


def test_each_term_has_its_token_version_and_advantage() -> None:
    groups = two_groups()
    (batch,) = batches_of(groups)
    assert Counter(terms_of(batch)) == Counter(expected_terms(groups))
    packed = int(batch["attention_mask"].sum())
    assert packed < sum(len(r.ids) for g in groups for e in g.episodes for r in e.rows)


ids = st.integers(2, 5)
parts = st.lists(st.tuples(st.lists(ids, min_size=1, max_size=3), st.integers(0, 3)), min_size=1)


@st.composite
def some_groups(draw: st.DrawFn) -> list[Group]:
    made = []
    for index in range(draw(st.integers(2, 4))):
        episodes = [
            make_episode(
                float(reward),
                *(
                    make_row(draw(st.lists(ids, min_size=1, max_size=4)), *draw(parts))
                    for _ in range(draw(st.integers(1, 2)))
                ),
            )
            for reward in range(draw(st.integers(2, 3)))
        ]
        made.append(make_group(index, *episodes))
    return made


@settings(max_examples=25, deadline=None)
@given(some_groups())
def test_nothing_is_lost_or_mixed_up_whatever_the_rows(groups: list[Group]) -> None:
    (batch,) = batches_of(groups, longest=10_000)
    assert Counter(terms_of(batch)) == Counter(expected_terms(groups))


def test_rows_of_one_batch_have_numbers_of_their_own() -> None:
    (batch,) = batches_of(two_groups())
    real = batch["token_index"] >= 0
    counted = Counter(batch["segment_id"][real].tolist())
    assert sorted(counted.values()) == [1, 1, 2, 3, 3, 4]
    assert max(counted) == 5


def test_what_a_step_counts_is_the_same_in_each_of_its_micro_batches() -> None:
    whole = batches_of(two_groups())
    cut = batches_of(two_groups(), accumulation=2)
    assert [len(whole), len(cut)] == [1, 2]
    for batch in (*whole, *cut):
        assert int(batch["rows_in_step"]) == 6
        assert int(batch["tokens_in_step"]) == 14
    together = Counter(term for batch in cut for term in terms_of(batch))
    assert Counter(terms_of(whole[0])) == together
    assert all(terms_of(batch) for batch in cut)


def flat(index: int) -> Group:
    return make_group(index, *(make_episode(0.5, make_row([2], ([3, 4], 8))) for _ in range(2)))


def test_flat_groups_are_left_out() -> None:
    groups = [*two_groups(), flat(2), flat(3)]
    (batch,) = batches_of(groups)
    assert Counter(terms_of(batch)) == Counter(expected_terms(groups[:2]))
    assert int(batch["rows_in_step"]) == 6


def test_an_episode_that_is_just_average_counts_in_the_means() -> None:
    episodes = [make_episode(reward, make_row([2], ([3, 4], 8))) for reward in (0.0, 0.5, 1.0)]
    (batch,) = batches_of([make_group(0, *episodes)])
    assert (int(batch["rows_in_step"]), int(batch["tokens_in_step"])) == (3, 6)
    assert [term[-1] for term in terms_of(batch)] == [-0.5, -0.5, 0.0, 0.0, 0.5, 0.5]


def test_a_step_of_flat_groups_still_has_its_micro_batches_and_teaches_nothing() -> None:
    made = batches_of([flat(0), flat(1)], accumulation=2)
    assert len(made) == 2
    for batch in made:
        assert [term[-1] for term in terms_of(batch)] == [0.0, 0.0]
        assert (int(batch["rows_in_step"]), int(batch["tokens_in_step"])) == (1, 1)


def test_a_micro_batch_whose_episodes_were_all_dropped_teaches_nothing() -> None:
    first, _ = two_groups()
    made = batches_of([first, make_group(1, dropped=2)], accumulation=2)
    assert Counter(terms_of(made[0])) == Counter(expected_terms([first]))
    assert {term[-1] for term in terms_of(made[1])} == {0.0}
    assert int(made[1]["rows_in_step"]) == 3


def test_a_step_without_any_row_says_so() -> None:
    with pytest.raises(RolloutFailed, match="step 1 has nothing to train on"):
        batches_of([make_group(0, dropped=2), make_group(1, dropped=2)])


def test_rows_that_are_too_long_are_left_out_as_a_whole() -> None:
    groups = two_groups()
    (batch,) = batches_of(groups, longest=4)
    kept = [
        make_group(
            group.index,
            *(
                make_episode(e.reward, *(row for row in e.rows if len(row.ids) <= 4))
                for e in group.episodes
            ),
        )
        for group in groups
    ]
    assert Counter(terms_of(batch)) == Counter(expected_terms(kept))
    assert int(batch["rows_in_step"]) == 2


def test_the_scale_is_the_one_asked_for() -> None:
    found = {}
    for scale in Scale:
        (batch,) = batches_of(two_groups(), scale=scale)
        found[scale] = sorted({term[-1] for term in terms_of(batch)})
        expected = with_advantages(two_groups(), scale)
        assert found[scale] == sorted({round(e.advantage, 4) for g in expected for e in g.episodes})
    assert len({tuple(each) for each in found.values()}) == 3


def test_the_control_shuffles_rewards_differently_in_each_step() -> None:
    groups = [
        make_group(
            g, *(make_episode(float(5 * g + e), make_row([2], ([3 + e], 0))) for e in range(5))
        )
        for g in range(2)
    ]
    seen: list[list[float]] = []
    plan = StepPlan(
        first=1,
        last=2,
        accumulation=1,
        scale=Scale.NONE,
        shuffle_seed=3,
        max_row_tokens=9,
        pad_token_id=0,
    )
    made = Steps(
        plan,
        Worker(groups),
        on_step=lambda _, told: seen.append([e.reward for g in told for e in g.episodes]),
        metrics=defaultdict(list),
    )
    assert len(list(made)) == 2
    assert seen[0] != seen[1] != [float(n) for n in range(10)]
    assert sorted(seen[0]) == sorted(seen[1]) == [float(n) for n in range(10)]


def test_a_step_is_not_asked_for_before_the_one_before_it_is_over() -> None:
    worker, told = Worker(two_groups()), []
    clock = iter(float(n * n) for n in range(99))
    plan = StepPlan(
        first=3, last=4, accumulation=2, scale=Scale.NONE, max_row_tokens=64, pad_token_id=0
    )
    made = Steps(
        plan,
        worker,
        on_step=lambda step, groups: told.append((step, len(groups))),
        metrics=defaultdict(list),
        clock=lambda: next(clock),
    )
    turns: Iterator[Any] = iter(made)
    next(turns)
    next(turns)
    assert worker.asked == [3]
    assert made.wait_s == 1.0
    next(turns)
    assert worker.asked == [3, 4]
    assert told == [(3, 2), (4, 2)]
    assert made.wait_s == 1.0 + 5.0


class TestSeveralProcesses:
    @pytest.fixture
    def share(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return what one of several processes gets; only the first has a worker."""

        def share(groups: Sequence[Group], process: int, count: int) -> list[dict[str, Any]]:
            sent: list[Any] = []

            def broadcast(held: list[Any], from_process: int) -> list[Any]:
                assert from_process == 0
                if process:
                    assert held == [None, None]
                    held = [tuple(groups), None]
                sent.append(held[0])
                return held

            monkeypatch.setenv("WORLD_SIZE", str(count))
            monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
            plan = StepPlan(
                first=1, last=1, accumulation=1, scale=Scale.NONE, max_row_tokens=64, pad_token_id=0
            )
            made = Steps(
                plan,
                None if process else Worker(groups),
                on_step=lambda *_: None,
                metrics=defaultdict(list),
                process=process,
                process_count=count,
            )
            found = list(made)
            assert sent == [tuple(groups)]
            return found

        return share

    @pytest.mark.parametrize("count", [2, 3])
    def test_shares_are_disjoint_and_together_everything(self, share: Any, count: int) -> None:
        groups = [*two_groups(), flat(2)]
        batches = [share(groups, process, count)[0] for process in range(count)]
        found = [Counter(terms_of(batch)) for batch in batches]
        assert all(found)
        assert sum(found, Counter()) == Counter(expected_terms(groups))
        for batch in batches:
            assert batch["input_ids"].shape[0] == 1
            assert (int(batch["rows_in_step"]), int(batch["tokens_in_step"])) == (6, 14)

    def test_a_process_without_a_row_of_its_own_teaches_nothing(self, share: Any) -> None:
        groups = [
            make_group(
                0,
                make_episode(1.0, make_row([2], ([3], 0))),
                make_episode(0.0, make_row([2], ([4], 0))),
            )
        ]
        found = [terms_of(share(groups, process, 4)[0]) for process in range(4)]
        assert all(found)
        taught = [term for each in found for term in each if term[-1]]
        assert Counter(taught) == Counter(expected_terms(groups))


def test_token_versions_are_in_the_order_of_the_terms() -> None:
    """Versions made from the ids, so that any other order shows."""
    chance = np.random.default_rng(0)

    def row() -> Row:
        ids_ = chance.integers(2, 6, 12).tolist()
        made = make_row(ids_[:4], (ids_[4:], 0))
        return Row(
            ids=made.ids,
            trained=made.trained,
            logprobs=-made.ids.astype(np.float32) * made.trained,
            versions=np.where(made.trained == 1, made.ids, -1).astype(np.int32),
        )

    groups = [make_group(0, *(make_episode(float(n), row()) for n in range(6)))]
    (batch,) = batches_of(groups)
    old = batch["old_log_probs"][batch["token_index"] >= 0]
    assert torch.equal(batch["token_versions"], -old.long())
