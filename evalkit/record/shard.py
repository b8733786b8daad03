"""A shard of a run: which of its seeds one process or container plays, and what it is called.

Env seeds are dealt out like cards, so that the shards differ by one seed at most. All repetitions
and arms of a seed stay together: what is compared was played side by side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from evalkit.errors import BadConfig

MAX_SHARDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Shard:
    """One of `count` shards; written as 2/8."""

    index: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read INDEX/COUNT.

        Raises:
            BadConfig: it is not that, or out of its range.

        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]) <= MAX_SHARDS:
            raise BadConfig(f"a shard is INDEX/COUNT, as in 1/8 to 8/8, not {text!r}")
        return cls(index=int(match[1]), count=int(match[2]))

    @classmethod
    def all(cls, count: int, seeds: Sequence[int]) -> list[Shard]:
        """Return every shard of a run over `seeds`.

        Raises:
            BadConfig: there are fewer seeds than shards.

        """
        if not 1 <= count <= min(len(seeds), MAX_SHARDS):
            raise BadConfig(
                f"{len(seeds)} env seeds make 1 to {min(len(seeds), MAX_SHARDS)} shards, "
                f"not {count}"
            )
        return [cls(index=index, count=count) for index in range(1, count + 1)]

    def of(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the env seeds of this shard, in the run's order.

        Raises:
            BadConfig: there are fewer seeds than shards.

        """
        self.all(self.count, seeds)
        return tuple(seeds[self.index - 1 :: self.count])

    @property
    def folder(self) -> str:
        """Its name as a folder."""
        return f"{self.index}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
