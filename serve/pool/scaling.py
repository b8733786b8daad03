"""How many replicas there should be: a function of demand and time. No clock of its own, no I/O."""

import math
from dataclasses import dataclass

from serve.pool.base import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """When a pool grows and shrinks, between `least` and `most` replicas."""

    least: int = 1
    most: int = 1
    target_in_flight: int = 32
    """Requests per replica above which another one is wanted."""
    up_after_s: float = 5.0
    down_after_s: float = 120.0
    idle_to_zero_s: float | None = None
    """Want none after so long without a request; None keeps `least`."""


class Scaler:
    """Remembers since when there is too much or too little to do."""

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling
        self._over_since_s: float | None = None
        self._under_since_s: float | None = None

    def wanted(self, demand: Demand, current: int, now_s: float) -> int:
        """Return how many replicas there should be, when `current` are wanted already.

        Grows at once where requests are held for want of a replica, else after `up_after_s`;
        shrinks by one each `down_after_s`. Never outside `least` to `most`, but for zero: that it
        leaves only for requests.
        """
        scaling = self._scaling
        floor = max(1, scaling.least)
        if current == 0 or self._is_idle(demand):
            self._over_since_s = self._under_since_s = None
            return floor if demand.held or demand.in_flight else 0
        if current < floor:
            return floor
        load = demand.in_flight + demand.held
        needed = min(scaling.most, max(floor, math.ceil(load / scaling.target_in_flight)))
        if needed > current:
            self._under_since_s = None
            self._over_since_s = now_s if self._over_since_s is None else self._over_since_s
            is_due = demand.held or now_s - self._over_since_s >= scaling.up_after_s
            return needed if is_due else current
        self._over_since_s = None
        if needed == current:
            self._under_since_s = None
            return current
        self._under_since_s = now_s if self._under_since_s is None else self._under_since_s
        if now_s - self._under_since_s < scaling.down_after_s:
            return current
        self._under_since_s = now_s
        return current - 1

    def _is_idle(self, demand: Demand) -> bool:
        limit_s = self._scaling.idle_to_zero_s
        is_busy = demand.held or demand.in_flight
        return limit_s is not None and not is_busy and demand.idle_s >= limit_s
