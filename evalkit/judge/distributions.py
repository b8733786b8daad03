"""Quantiles and tails of the normal, Student's t and the beta, without scipy.

Every function is pure; probabilities are in (0, 1), exclusive. Must not know of intervals.
"""

import math
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_LARGE_DF = 1e5
_EPSILON = 2.0**-52


def normal_quantile(probability: float) -> float:
    """Return the standard normal quantile of a probability in (0, 1).

    Raises `statistics.StatisticsError`, a `ValueError`, outside (0, 1).
    Source: Wichura 1988, AS 241, as in `statistics.NormalDist`.
    """
    return _NORMAL.inv_cdf(probability)


@lru_cache(maxsize=4096)
def student_t_quantile(probability: float, df: float) -> float:
    """Return the quantile of Student's t with `df` > 0 degrees of freedom, whole or not.

    Relative accuracy is 1e-9 or better. Raises ValueError outside (0, 1) or for `df` <= 0.
    Source: P(|T| > t) = I_x(df/2, 1/2) with x = df / (df + t^2), inverted by safeguarded Newton
    steps; from 1e5 degrees of freedom on, the Cornish-Fisher series (Abramowitz & Stegun 26.7.5).
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"expected a probability in (0, 1), got {probability}")
    if not df > 0.0:
        raise ValueError(f"expected df > 0, got {df}")
    tail = min(probability, 1.0 - probability)
    if tail == 0.5:
        return 0.0
    magnitude = _quantile_large_df(tail, df) if df >= _LARGE_DF else _solve_tail(2.0 * tail, df)
    return math.copysign(magnitude, probability - 0.5)


def critical_t(level: float, df: float) -> float:
    """Return the t with a share `level` between -t and t. Raises ValueError outside (0, 1)."""
    return student_t_quantile(0.5 + require_level(level) / 2.0, df)


def critical_z(level: float) -> float:
    """Return the z with a share `level` between -z and z. Raises ValueError outside (0, 1)."""
    return normal_quantile(0.5 + require_level(level) / 2.0)


def normal_tail(z: float) -> float:
    """P(Z > z) of a standard normal."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def student_t_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t with `df` > 0 degrees of freedom. Raises ValueError for `df` <= 0."""
    if not df > 0.0:
        raise ValueError(f"expected df > 0, got {df}")
    if math.isinf(t) or abs(t) < 1e-100:  # the square of a smaller one may be 0
        return float(t < 0.0) if math.isinf(t) else 0.5
    tail = normal_tail(abs(t)) if df >= 1e12 else 0.5 * _two_sided_tail(abs(t), df)
    return tail if t > 0.0 else 1.0 - tail


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta I_x(a, b); `a` and `b` are positive.

    Raises ValueError for an `x` outside [0, 1] or parameters that are not positive.
    """
    if not (0.0 <= x <= 1.0 and a > 0.0 and b > 0.0):
        raise ValueError(f"expected 0 <= x <= 1 and a, b > 0, got {(x, a, b)}")
    if x in (0.0, 1.0):
        return x
    norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(norm + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(x, a, b) / a
    return 1.0 - front * _beta_fraction(1.0 - x, b, a) / b


def require_level(level: float) -> float:
    """Return the confidence level itself. Raises ValueError unless it lies in (0, 1)."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"expected a confidence level in (0, 1) such as 0.95, got {level}")
    return level


def _quantile_large_df(tail: float, df: float) -> float:
    z = -normal_quantile(tail)
    first = (z**3 + z) / 4.0
    second = (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0
    return z + first / df + second / (df * df)


def _solve_tail(target: float, df: float) -> float:
    """Find t > 0 with P(|T| > t) = target: Newton, falling back to the middle of the bracket."""
    low, high = 0.0, 1.0
    while _two_sided_tail(high, df) > target:
        low, high = high, 2.0 * high
    t = 0.5 * (low + high)
    for _ in range(200):
        excess = _two_sided_tail(t, df) - target
        low, high = (t, high) if excess > 0.0 else (low, t)
        density = math.exp(_log_density(t, df))
        step = excess / (2.0 * density) if density > 0.0 else math.inf
        candidate = t + step
        if not low < candidate < high:
            candidate = 0.5 * (low + high)
        if abs(candidate - t) <= 4.0 * _EPSILON * t:
            return candidate
        t = candidate
    return t


def _log_density(t: float, df: float) -> float:
    norm = _log_gamma_ratio(0.5 * df) - 0.5 * math.log(math.pi * df)
    return norm - 0.5 * (df + 1.0) * math.log1p(t * t / df)


def _two_sided_tail(t: float, df: float) -> float:
    """P(|T| > t), the regularised incomplete beta I_x(df/2, 1/2)."""
    a, b = 0.5 * df, 0.5
    x, y = df / (df + t * t), t * t / (df + t * t)
    log_front = (
        _log_gamma_ratio(a) - 0.5 * math.log(math.pi) - a * math.log1p(t * t / df) + b * math.log(y)
    )
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(x, a, b) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(y, b, a) / b


def _log_gamma_ratio(a: float) -> float:
    """ln(Gamma(a + 1/2) / Gamma(a)); the series avoids the cancellation of two large logarithms."""
    if a < 20.0:
        return math.lgamma(a + 0.5) - math.lgamma(a)
    inverse_square = 1.0 / (a * a)
    series = -1 / 8 + inverse_square * (
        1 / 192 + inverse_square * (-1 / 640 + 17e0 / 14336 / a / a)
    )
    return 0.5 * math.log(a) + series / a


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Evaluate the continued fraction of the incomplete beta by Lentz's method (DLMF 8.17.22)."""
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, 20_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        previous = fraction
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d)
            c = 1.0 + term / c
            fraction *= c * d
        if abs(fraction - previous) <= _EPSILON * abs(fraction):
            return fraction
    raise ArithmeticError(f"the incomplete beta did not converge: x={x}, a={a}, b={b}")
