"""`evalkit fork`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.arguments import Parser, add_limits
from evalkit.commands.ends import awaited
from evalkit.errors import BadConfig

if TYPE_CHECKING:
    from evalkit.debug.forks import Forked
    from evalkit.debug.interventions import InterventionKind

SHOWN_TURNS = 6
"""Turns that are printed side by side from the fork on; `replay` shows them all."""


def command(words: Sequence[str]) -> int:
    """Change one turn of a recorded episode, and play on from there.

    The turns before it are replayed and compared to the byte. What comes of it is a run of its
    own, beside the one it comes from, and is printed beside the recorded episode.
    """
    typed = _parser().parse_args(words)
    if not 1 <= typed.n <= 1000:
        raise BadConfig(f"-n is 1 to 1000 futures, not {typed.n}")
    from evalkit.debug.forks import fork  # noqa: PLC0415
    from evalkit.debug.origin import RecordedRun  # noqa: PLC0415
    from evalkit.environment import load_env_file  # noqa: PLC0415

    load_env_file(Path(".env"))
    run = RecordedRun(typed.run)
    parent = run.find(typed.seed, typed.arm, typed.repetition)
    limits = ("concurrency", "api_key_env", "timeout_s", "wait_s", "attempts", "out")
    settings = {name: getattr(typed, name) for name in limits}
    work = fork(run, parent, typed.turn, _changes(typed), model=typed.model, n=typed.n, **settings)
    forked = awaited(work)
    if isinstance(forked, int):
        return forked
    return _printed(forked)


def _parser() -> Parser:
    parser = Parser(prog="evalkit fork", description=command.__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("run", type=Path, help="the run's directory")
    add("--seed", type=int, required=True, help="env seed of the episode")
    add("--arm", help="its arm; needed where the run has several")
    add("--repetition", type=int, default=0)
    add("--turn", type=int, required=True, metavar="T", help="the first turn to be played anew")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--action", help="force an action in turn T")
    said.add_argument("--reply", metavar="TEXT", help="put a reply in the model's mouth in turn T")
    add("--observation", metavar="TEXT", help="show the model another observation in turn T")
    add("--pad", metavar="TEXT", help="rewrite its scratchpad before turn T")
    add("--strategy", metavar="NAME", help="keep the past by another history strategy from turn T")
    add("--model", metavar="[LABEL=]URL[#NAME]", help="who plays on (default: who played)")
    add("-n", type=int, default=1, metavar="N", help="futures to play (default 1)")
    add("--out", metavar="DIR", help="where the fork is written (default: beside the run)")
    parser.set_defaults(concurrency=None, api_key_env=None, timeout_s=None, wait_s=None)
    parser.set_defaults(attempts=None)
    add_limits(parser)
    return parser


def _changes(typed: Namespace) -> list[tuple[InterventionKind, str]]:
    from evalkit.debug.interventions import InterventionKind  # noqa: PLC0415

    asked = {
        InterventionKind.STRATEGY: typed.strategy,
        InterventionKind.NOTES: typed.pad,
        InterventionKind.OBSERVATION: typed.observation,
        InterventionKind.REPLY: typed.reply,
        InterventionKind.ACTION: typed.action,
    }
    return [(kind, text) for kind, text in asked.items() if text is not None]


def _printed(forked: Forked) -> int:
    """Print the futures beside what was recorded; return the exit code."""
    from evalkit.debug.futures import Future, parting, side_by_side  # noqa: PLC0415
    from evalkit.show.replay import printable  # noqa: PLC0415

    recorded = Future.of("as recorded", forked.parent)
    futures = [
        Future.of(f"fork {number}" if len(forked.futures) > 1 else "fork", trajectory)
        for number, trajectory in enumerate(forked.futures)
    ]
    if len(futures) == 1:
        print("\n".join(side_by_side(recorded, futures[0], most_turns=SHOWN_TURNS)))
    else:
        print(f"{recorded.name}: {recorded.ending}")
        for future in futures:
            parted = parting(recorded, future)
            where = "the same" if parted is None else f"parts at turn {parted}"
            print(f"{future.name}: {future.ending}; {where}")
        won = sum(future.success is True for future in futures)
        print(f"{won} of {len(futures)} futures succeed")
    print(f"\n{forked.path}/")
    lost = [trajectory for trajectory in forked.futures if not trajectory.scored]
    for trajectory in lost[:1]:
        print(f"{len(lost)} not scored: {printable(trajectory.failure_message or '')}")
    return 1 if lost else 0
