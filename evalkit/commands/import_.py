"""`evalkit import`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.errors import BadConfig


def command(words: Sequence[str]) -> int:
    """Make runs of inspect's logs, so that `compare` can compare them."""
    parser = Parser(prog="evalkit import", description=command.__doc__)
    parser.add_argument("file", type=Path, nargs="+", metavar="FILE.eval")
    parser.add_argument("--out", type=Path, default=Path("results"), help="default results")
    parser.add_argument(
        "--score", metavar="NAME", help="the score that is the success (NAME/KEY of several values)"
    )
    parser.add_argument(
        "--return",
        dest="return_score",
        metavar="NAME",
        help="the score that is the return (default: `return` if there is one, else the success)",
    )
    parser.add_argument(
        "--success-at",
        type=float,
        default=1.0,
        metavar="X",
        help="success is X or more (default 1)",
    )
    typed = parser.parse_args(words)
    if not math.isfinite(typed.success_at):
        raise BadConfig(f"--success-at is a number, not {typed.success_at}")
    from evalkit.exchange.inspect_import import Wanted, import_logs  # noqa: PLC0415

    wanted = Wanted(score=typed.score, return_score=typed.return_score, success_at=typed.success_at)
    made = import_logs(typed.file, typed.out, wanted)
    print("\n".join(map(str, made)))
    if len(made) > 1:
        print(f"\ncompare them: python -m evalkit compare {made[0]} {made[1]}")
    return 0
