"""Many comparisons at once: p-values that stay honest when more than one is read."""

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
