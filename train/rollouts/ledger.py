"""From an episode's turns to training rows: one row while the prompt only grows. Pure.

Where a turn's prompt begins with everything the row holds, the row goes on: what stands between is
the env's, and not trained on. Where the prompt was rewritten, a new row begins. So FULL_HISTORY
gives one row per episode and NO_HISTORY one per turn, and each sampled token is trained on exactly
once, after exactly the tokens that it was sampled after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from evalkit.play.tokens import TokenTurn
from train.rollouts.rows import Row


@dataclass(slots=True)
class _Open:
    """A row that may still grow."""

    ids: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def takes(self, turn: TokenTurn) -> bool:
        held = len(self.ids)
        return len(turn.prompt) >= held and list(turn.prompt[:held]) == self.ids

    def add(self, turn: TokenTurn) -> None:
        self._extend(turn.prompt[len(self.ids) :])
        self._extend(turn.sampled, turn)

    def _extend(self, ids: Sequence[int], turn: TokenTurn | None = None) -> None:
        count = len(ids)
        self.ids += ids
        self.trained += [int(turn is not None)] * count
        self.logprobs += turn.logprobs if turn else [0.0] * count
        self.versions += turn.versions if turn else [-1] * count

    def close(self) -> Row:
        return Row(
            ids=np.asarray(self.ids, dtype=np.int32),
            trained=np.asarray(self.trained, dtype=np.int8),
            logprobs=np.asarray(self.logprobs, dtype=np.float32),
            versions=np.asarray(self.versions, dtype=np.int32),
        )


def rows_of(turns: Iterable[TokenTurn]) -> tuple[Row, ...]:
    """Return the rows of one episode, in the order they were played."""
    rows: list[_Open] = []
    for turn in turns:
        if not rows or not rows[-1].takes(turn):
            rows.append(_Open())
        rows[-1].add(turn)
    return tuple(row.close() for row in rows)
