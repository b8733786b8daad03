"""Which env seeds are trained on: never one that an evaluation may use. Pure."""

from __future__ import annotations

from hashlib import blake2b

FIRST = 1 << 32
"""The smallest seed of training. Evaluations use seeds below 2**31, warm starts those between."""


def group_seed(run_seed: int, group: int) -> int:
    """Return the env seed of a group: 2**32 or more, the same for the same run seed and group."""
    key = f"{run_seed}|{group}".encode()
    return FIRST + (int.from_bytes(blake2b(key, digest_size=6).digest(), "big"))
