"""`evalkit compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.commands.ends import print_report
from evalkit.errors import BadConfig


def command(words: Sequence[str]) -> int:
    """Compare runs of the same env on the seeds that they share.

    Runs of several envs are compared env by env, and their p-values corrected together.
    """
    parser = Parser(prog="evalkit compare", description=command.__doc__)
    parser.add_argument("run", type=Path, nargs="+", metavar="RUN", help="two runs or more")
    parser.add_argument("--names", metavar="A,B", help="what to call them (default: their folders)")
    parser.add_argument(
        "--margin",
        type=float,
        help="arms whose rates differ by less are equivalent, .02 is 2 points (default: none)",
    )
    parser.add_argument("--out", type=Path, help="where to write (default: LAST/compare-FIRST)")
    typed = parser.parse_args(words)
    from evalkit.compared import compare_many  # noqa: PLC0415
    from evalkit.show.files import write_comparison  # noqa: PLC0415

    names = None if typed.names is None else typed.names.split(",")
    reports = compare_many(*typed.run, names=names, margin=typed.margin)
    top = typed.out or typed.run[-1] / f"compare-{typed.run[0].resolve().name}"
    for report in reports:
        folder = top if len(reports) == 1 else top / report.run_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_comparison(folder, report)
        except OSError as error:
            raise BadConfig(f"cannot write below {folder}: {error}") from error
        print_report(report, folder)
    return 0
