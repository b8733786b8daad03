"""What a FakeEngine has seen: counts for tests to look at, while it runs or at /stats."""

from collections import Counter


class Stats:
    """Counts requests for completions only, not GETs and not those of an administrator."""

    def __init__(self) -> None:
        self.requests = 0
        self.statuses: Counter[int] = Counter()
        self.in_flight = 0
        self.in_flight_max = 0
        self.connections_total = 0
        self.connections_max = 0
        self.abandoned = 0
        """Requests whose client left before the answer."""
        self.tokens_made = 0
        self.made: Counter[str] = Counter()
        """Tokens made, by X-Request-ID."""
        self.answered: Counter[str] = Counter()
        """Good answers written in full, by X-Request-ID."""

    def snapshot(self, connections: int) -> dict[str, object]:
        """Return the counts as /stats shows them."""
        return {
            "requests": self.requests,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "in_flight": self.in_flight,
            "in_flight_max": self.in_flight_max,
            "connections": connections,
            "connections_max": self.connections_max,
            "connections_total": self.connections_total,
            "abandoned": self.abandoned,
            "tokens_made": self.tokens_made,
        }
