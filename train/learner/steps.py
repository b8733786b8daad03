"""From a step's groups to what the model is given: packed rows, by TRL's trie, one step at a time.

Nothing is taken ahead of time: the groups of a step are asked for when the step before it is over
and published, so that a staleness of 0 means 0.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset
from trl.experimental.async_grpo.async_grpo_trainer import (
    DataCollatorForRollout,
    FixedCountBatcher,
)
from trl.experimental.async_grpo.packing import TreeRow

from train.config import Scale
from train.errors import RolloutFailed
from train.publish import processes
from train.rollouts.advantages import with_advantages
from train.rollouts.rows import Episode, Group, Row


class TakesSteps(Protocol):
    """Where whole steps come from: a rollout worker."""

    def take(self, step: int) -> tuple[Group, ...]:
        """Return the groups of a step (from 1), as soon as all are played."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """How a step is cut."""

    first: int
    """The first step, from 1."""
    last: int
    accumulation: int
    scale: Scale
    shuffle_seed: int | None = None
    """Of the control in which returns change places; None leaves them where they belong."""
    max_row_tokens: int
    pad_token_id: int


class Steps(IterableDataset[dict[str, Any]]):  # type: ignore[misc]  # torch has no types here
    """Yields micro-batches, `accumulation` for each step.

    On several processes the main one takes the groups and all get them; each keeps its share.
    """

    def __init__(
        self,
        plan: StepPlan,
        worker: TakesSteps | None,
        *,
        on_step: Callable[[int, tuple[Group, ...]], None],
        metrics: dict[str, list[Any]],
        process: int = 0,
        process_count: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`worker` is None on all processes but the main one; `metrics` is TRL's sink."""
        self._plan = plan
        self._worker = worker
        self._on_step = on_step
        self._metrics = metrics
        self._process = process
        self._process_count = process_count
        self._clock = clock
        self.wait_s = 0.0
        """Seconds that the trainer waited for groups since somebody set it to 0."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(self._plan.first, self._plan.last + 1):
            groups = self._groups(step)
            self._on_step(step, groups)
            yield from self._batches(step, groups)

    def _groups(self, step: int) -> tuple[Group, ...]:
        worker = self._worker
        groups = processes.told(None if worker is None else partial(self._take, worker, step))
        shuffle = None
        if self._plan.shuffle_seed is not None:
            shuffle = random.Random(f"{self._plan.shuffle_seed}|{step}")
        return with_advantages(groups, self._plan.scale, shuffle)

    def _take(self, worker: TakesSteps, step: int) -> tuple[Group, ...]:
        started_s = self._clock()
        try:
            return worker.take(step)
        finally:
            self.wait_s += self._clock() - started_s

    def _batches(self, step: int, groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
        share = len(groups) // self._plan.accumulation
        samples = [
            self._samples(groups[first : first + share]) for first in range(0, len(groups), share)
        ]
        filler = next((sample | {"advantage": 0.0} for each in samples for sample in each), None)
        if filler is None:
            raise RolloutFailed(
                f"step {step} has nothing to train on: none of its episodes could be scored, or "
                "all rows are longer than learn.max_row_tokens"
            )
        taught = [sample for each in samples for sample in each if not sample["flat"]]
        rows, tokens = len(taught), sum(int(each["completion_mask"].sum()) for each in taught)
        collate = DataCollatorForRollout(
            self._plan.pad_token_id, self._process_count, metrics=self._metrics
        )
        for each in samples:
            taken = [sample for sample in each if not sample["flat"]] or [filler]
            shares = _shares(taken, self._process_count)
            batch = collate.torch_call([shares])
            batch = {key: value[self._process : self._process + 1] for key, value in batch.items()}
            batch["token_versions"] = _token_versions(shares[self._process])
            batch["rows_in_step"] = torch.tensor(max(1, rows))
            batch["tokens_in_step"] = torch.tensor(max(1, tokens))
            yield batch

    def _samples(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        return [
            _sample(row, episode, group)
            for group in groups
            for episode in group.episodes
            for row in episode.rows
            if len(row.ids) <= self._plan.max_row_tokens
        ]


def _sample(row: Row, episode: Episode, group: Group) -> dict[str, Any]:
    """Return a row as TRL's packing wants it, and what we want to know besides."""
    return {
        "input_ids": row.ids,
        "completion_mask": row.trained,
        "old_log_probs": row.logprobs,
        "advantage": episode.advantage,
        "group_id": group.index,
        "metrics": {"reward": episode.reward},
        "versions": row.versions,
        "flat": group.is_flat,
    }


def _shares(samples: list[dict[str, Any]], count: int) -> list[TreeRow]:
    """Pack samples into one row per process, balanced by what attention costs."""
    if len(samples) < count:
        samples = samples + [samples[0] | {"advantage": 0.0}] * (count - len(samples))
    rows: list[TreeRow] = next(iter(FixedCountBatcher(samples, count, len(samples))))
    return rows


def _token_versions(row: TreeRow) -> torch.Tensor:
    """Return the version of each loss term, in the order in which `TreeRow.pack` lays them out."""
    parts = [
        sample["versions"][1:][sample["completion_mask"][1:].astype(bool)] for sample in row.samples
    ]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
