"""Several arms on the same seeds, one seed after the other: which number decides, and until when.

Must not know how seeds are played, nor how a stop is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

from evalkit.judge.sequential import SequentialTest, StoppingRule, Verdict

Pair = tuple[str, str]
"""Two arms, A and B."""


class Deciding(StrEnum):
    """The number per episode on which a run stops."""

    SUCCESS = "success"
    """The env's own verdict."""
    VALID_ACTION_RATE = "valid_action_rate"
    """The share of turns in which a legal action was taken."""
    RETURN = "return"
    """The sum of rewards; needs the width of its range."""


class SequentialArms:
    """Sequential comparisons of pairs of arms, each at its even share of alpha.

    None of equal pairs is called different with a chance of more than the rule's alpha. A pair of
    arms that is decided takes in no further seed; the run can end when `done`.
    """

    def __init__(self, pairs: Sequence[Pair], rule: StoppingRule) -> None:
        """Raise ValueError for no pair, or one that is named twice."""
        if not pairs or len(set(pairs)) != len(pairs):
            raise ValueError(f"expected one or more distinct pairs of arms, got {list(pairs)}")
        shared = rule.split(len(pairs))
        self.tests = {pair: SequentialTest(shared) for pair in pairs}
        self.lost: Counter[Pair] = Counter()
        """Seeds that a pair of arms went without, because an arm lost an episode on them."""

    @property
    def done(self) -> bool:
        """Whether no pair of arms asks for another seed."""
        return all(test.verdict is not Verdict.CONTINUE for test in self.tests.values())

    @property
    def progress(self) -> float:
        """How far the pair of arms that is farthest from its verdict has come: 0 to 1."""
        left = [test for test in self.tests.values() if test.verdict is Verdict.CONTINUE]
        return min((test.progress for test in left), default=1.0)

    def add(self, means: Mapping[str, float | None]) -> list[Pair]:
        """Take in every arm's mean on one seed, None where an episode of it was lost.

        Returns the pairs of arms that it counted for. Raises ValueError for a difference that
        exceeds the rule's span.
        """
        counted = []
        for pair, test in self.tests.items():
            if test.verdict is not Verdict.CONTINUE:
                continue
            left, right = means[pair[0]], means[pair[1]]
            if left is None or right is None:
                self.lost[pair] += 1
                continue
            test.add(right - left)
            counted.append(pair)
        return counted


def next_look(n_pairs: int) -> int:
    """Return after how many pairs to look again: each of the first 200, then every twentieth part.

    That bounds what the intervals of a long run cost; decisions look after every pair anyway.
    """
    return n_pairs + 1 if n_pairs < 200 else n_pairs + max(1, n_pairs // 20)
