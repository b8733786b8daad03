"""`evalkit power`."""

from __future__ import annotations

from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.errors import BadConfig

EXAMPLES = """\
examples:
  python -m evalkit power --baseline .5 --effect .1    how many seeds 60 % against 50 % needs
  python -m evalkit power --baseline .5 --seeds 200    the smallest gain that 200 seeds show
  python -m evalkit power RUN                          both, as the run's arms and seeds are
"""


def command(words: Sequence[str]) -> int:
    """Say how many seeds a comparison of success rates needs, or what a number of seeds shows."""
    typed = _read(words)
    from evalkit.planning import Question, plan_from_numbers, plan_from_run  # noqa: PLC0415

    try:
        question = Question(
            effect=typed.effect,
            seeds=typed.seeds,
            rho=typed.rho,
            k=typed.k,
            power=typed.power,
            alpha=typed.alpha,
        )
        if typed.run is None:
            lines = list(plan_from_numbers(typed.baseline, question))
        else:
            lines = list(plan_from_run(typed.run, question))
    except ValueError as error:
        raise BadConfig(str(error)) from error
    print("\n".join(lines))
    return 0


def _read(words: Sequence[str]) -> Namespace:
    parser = Parser(
        prog="evalkit power",
        description=command.__doc__,
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, nargs="?", metavar="RUN", help="a run's directory")
    add("--baseline", type=float, metavar="RATE", help="success rate of A, from 0 to 1")
    add("--effect", type=float, metavar="D", help="B less A: .1 is 10 points")
    add("--seeds", type=int, metavar="N", help="how many seeds both arms play")
    add("--rho", type=float, help="correlation of the arms' successes on a seed (default 0)")
    add("-k", "--k", type=int, help="repetitions of every seed (default 1)")
    add("--power", type=float, default=0.8, help="chance to see the difference (default .8)")
    add("--alpha", type=float, default=0.05, help="chance to see one without any (default .05)")
    typed = parser.parse_args(words)
    if (typed.run is None) == (typed.baseline is None):
        raise BadConfig("give a RUN, or --baseline with --effect or --seeds (see --help)")
    if typed.run is None and (typed.effect is None) == (typed.seeds is None):
        raise BadConfig("with --baseline give --effect (how many seeds?) or --seeds (what effect?)")
    return typed
