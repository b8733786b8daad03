"""`evalkit compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.commands.ends import print_report
from evalkit.errors import BadConfig


def command(words: Sequence[str]) -> int:
    """Compare two runs of the same env on the seeds that both finished."""
    parser = Parser(prog="evalkit compare", description=command.__doc__)
    parser.add_argument("run_a", type=Path)
    parser.add_argument("run_b", type=Path)
    parser.add_argument("--names", metavar="A,B", help="what to call them (default: their folders)")
    parser.add_argument("--out", type=Path, help="where to write (default: RUN_B/compare-RUN_A)")
    typed = parser.parse_args(words)
    a, comma, b = (typed.names or "").partition(",")
    if typed.names is not None and not (a and comma and b and a != b):
        raise BadConfig(f"--names takes two names, A,B, not {typed.names!r}")
    from evalkit.compared import compare  # noqa: PLC0415
    from evalkit.show.files import write_comparison  # noqa: PLC0415

    report = compare(typed.run_a, typed.run_b, names=(a, b) if comma else None)
    folder = typed.out or typed.run_b / f"compare-{typed.run_a.resolve().name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_comparison(folder, report)
    except OSError as error:
        raise BadConfig(f"cannot write below {folder}: {error}") from error
    print_report(report, folder)
    return 0
