"""`evalkit merge`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.commands.ends import played


def command(words: Sequence[str]) -> int:
    """Make one run of all of its shards, as if one process had played it."""
    parser = Parser(prog="evalkit merge", description=command.__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="where OUT/<run_id>/ is made")
    parser.add_argument(
        "shard", type=Path, nargs="+", metavar="SHARD", help="the shards' directories"
    )
    typed = parser.parse_args(words)
    from evalkit.sharded import merge  # noqa: PLC0415

    return played(merge(typed.out, typed.shard))
