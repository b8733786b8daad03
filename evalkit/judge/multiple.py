"""Many comparisons at once: p-values and e-values that stay honest when more than one is read."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evalkit.judge.intervals import Floats


def holm(p_values: Floats) -> list[float]:
    """Holm's adjusted p-values, in the order given; valid under any dependence.

    Reject where the adjusted value is at most alpha, and the chance of any false rejection is at
    most alpha. Raises ValueError for a value outside [0, 1]. Source: Holm 1979, Scand. J. Stat. 6.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not np.all((values >= 0.0) & (values <= 1.0)):
        raise ValueError(f"expected p-values in [0, 1], got {values.tolist()}")
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, stepped)
    return [float(value) for value in adjusted]


def e_bh(e_values: Floats) -> list[float]:
    """Adjust e-values by e-BH, in the order given; valid under any dependence.

    Reject where the adjusted value is at most alpha, and the expected share of false rejections
    is at most alpha, also for e-values at any stopping times. An e-value may be inf.
    Raises ValueError for a negative value or nan. Source: Wang & Ramdas 2022, JRSS B 84:822.
    """
    values = np.asarray(e_values, dtype=np.float64)
    if not np.all(values >= 0.0):
        raise ValueError(f"expected e-values >= 0, got {values.tolist()}")
    order = np.argsort(-values, kind="stable")
    ranks = np.arange(1, values.size + 1)
    with np.errstate(divide="ignore", over="ignore"):
        levels = np.minimum(1.0, values.size / (ranks * values[order]))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum.accumulate(levels[::-1])[::-1]
    return [float(value) for value in adjusted]


def tied_sets(arms: Sequence[str], differ: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the largest sets of arms of which no two were found to differ.

    `arms` come best first, and that is the order within sets; sets are ordered by their best, then
    second best arm, and so on. `differ` are the pairs found different, in either order, by tests
    corrected for being many. An arm may be in several sets: not being told apart is not transitive.
    Raises ValueError for names that are not distinct, or unknown.
    """
    if len(set(arms)) != len(arms):
        raise ValueError(f"expected distinct arms, got {list(arms)}")
    position = {arm: index for index, arm in enumerate(arms)}
    tied = {index: set(position.values()) - {index} for index in position.values()}
    for one, other in differ:
        if one not in position or other not in position or one == other:
            raise ValueError(f"expected two of {list(arms)}, got {one!r} and {other!r}")
        tied[position[one]].discard(position[other])
        tied[position[other]].discard(position[one])
    cliques = _largest_cliques(tied, [], set(tied), set())
    return [[arms[index] for index in clique] for clique in sorted(map(sorted, cliques))]


def _largest_cliques(
    tied: Mapping[int, set[int]], members: list[int], open_: set[int], done: set[int]
) -> list[list[int]]:
    """Bron & Kerbosch 1973, with Tomita's pivot."""
    if not open_ and not done:
        return [members] if members else []
    pivot = max(open_ | done, key=lambda index: len(tied[index] & open_))
    found = []
    for index in sorted(open_ - tied[pivot]):
        found += _largest_cliques(tied, [*members, index], open_ & tied[index], done & tied[index])
        open_ = open_ - {index}
        done = done | {index}
    return found
