"""How often one source may fail: a guess costs time, and no table grows without bound. Pure."""


class Backoff:
    """Lets a source fail `burst` times at once, and then once each `every_s`.

    Attempts while it is closed do not count, and nobody waits longer than `max_wait_s`: neighbours
    share an address. The table keeps the `max_sources` that failed last.
    """

    def __init__(
        self,
        *,
        burst: int = 20,
        every_s: float = 3.0,
        max_wait_s: float = 60.0,
        max_sources: int = 10_000,
    ) -> None:
        self._every_s = every_s
        self._allowance_s = burst * every_s
        self._longest_s = self._allowance_s + max_wait_s - every_s
        self._max_sources = max_sources
        self._paid_s: dict[str, float] = {}
        """Source -> when all its failures are forgotten."""

    def wait_s(self, source: str, now_s: float) -> float:
        """Return how long the source must wait before it may try; 0 is not at all."""
        paid_s = self._paid_s.get(source)
        if paid_s is None:
            return 0.0
        return max(0.0, paid_s + self._every_s - self._allowance_s - now_s)

    def failed(self, source: str, now_s: float) -> None:
        """Count a failure."""
        paid_s = self._paid_s.pop(source, now_s)
        if len(self._paid_s) >= self._max_sources:
            del self._paid_s[next(iter(self._paid_s))]
        paid_s = max(paid_s, now_s) + self._every_s
        self._paid_s[source] = min(paid_s, now_s + self._longest_s)

    @property
    def count(self) -> int:
        """How many sources are remembered."""
        return len(self._paid_s)
