"""Success weighted by path length: how directly the goal was reached, against the oracle.

Must not know what a turn is; lengths are whatever both sides count alike.
"""

from collections.abc import Sequence

import numpy as np

from evalkit.judge.intervals import FloatArray, Floats, MeanEstimate, clustered_mean


def path_weighted(successes: Floats, lengths: Floats, shortest: Floats) -> FloatArray:
    """Return success * shortest / max(length, shortest) of each episode, in [0, 1].

    All three have shape (n,). A success of shortest length 0 counts 1. Raises ValueError for shapes
    that differ, a success outside [0, 1] or a negative length.
    Source: Anderson et al. 2018, arXiv 1807.06757.
    """
    won, taken, best = (np.asarray(x, dtype=np.float64) for x in (successes, lengths, shortest))
    if not won.shape == taken.shape == best.shape:
        raise ValueError(f"expected equal shapes, got {won.shape}, {taken.shape}, {best.shape}")
    if not (np.all((won >= 0.0) & (won <= 1.0)) and np.all(taken >= 0.0) and np.all(best >= 0.0)):
        raise ValueError("expected successes in [0, 1] and lengths >= 0")
    longer = np.maximum(taken, best)
    share = np.divide(best, longer, out=np.ones_like(best), where=longer > 0.0)
    return np.asarray(won * share)


def spl(
    successes_by_seed: Sequence[Floats],
    lengths_by_seed: Sequence[Floats],
    shortest_by_seed: Floats,
    level: float = 0.95,
) -> MeanEstimate:
    """Estimate the mean SPL over episodes, with a t interval clustered by seed.

    One inner sequence per seed, over its repetitions; one shortest length per seed.
    Raises ValueError as `path_weighted`, and for numbers of seeds that differ.
    """
    seeds = zip(successes_by_seed, lengths_by_seed, shortest_by_seed, strict=True)
    weighted = [
        path_weighted(won, taken, np.full(len(taken), best, dtype=np.float64))
        for won, taken, best in seeds
    ]
    return clustered_mean(weighted, level)
