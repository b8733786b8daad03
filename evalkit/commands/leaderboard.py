"""`evalkit leaderboard`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.errors import BadConfig


def command(words: Sequence[str]) -> int:
    """Rank the arms of all finished runs of a folder, env by env, in its README.md."""
    parser = Parser(prog="evalkit leaderboard", description=command.__doc__)
    parser.add_argument("dir", type=Path, nargs="?", default=Path("results"), metavar="DIR")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="Markdown whose leaderboard is written anew (default: DIR/README.md)",
    )
    typed = parser.parse_args(words)
    if not typed.dir.is_dir():
        raise BadConfig(f"{typed.dir} is not a folder: expected one with runs, such as results")
    from evalkit.leaderboard import leaderboard, write_leaderboard  # noqa: PLC0415

    file = typed.out or typed.dir / "README.md"
    board = leaderboard(typed.dir, file.parent)
    write_leaderboard(file, board)
    for warning in board.warnings:
        print(f"evalkit: {warning}", file=sys.stderr)
    print(f"{file}: {board.arms} arms in {board.tables} tables")
    return 0
