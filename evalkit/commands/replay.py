"""`evalkit replay`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.errors import BadConfig

SHOWN = 20
"""Differences that are printed."""


def command(words: Sequence[str]) -> int:
    """Show a run's episodes turn by turn, or play all of them again without a model.

    With --check: exit code 0 when every episode comes out as it was recorded, to the byte, else 1.
    """
    parser = Parser(prog="evalkit replay", description="Show a run's episodes turn by turn.")
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--seed", type=int, help="env seed")
    parser.add_argument("--arm", help="only this arm")
    parser.add_argument("--repetition", type=int, default=0)
    parser.add_argument(
        "--check",
        action="store_true",
        help="play every episode again from its recorded replies, without a model, and compare "
        "prompts, actions, rewards and ends",
    )
    typed = parser.parse_args(words)
    if typed.check == (typed.seed is not None):
        raise BadConfig("expected either --seed, an episode to show, or --check (see --help)")
    return _check(typed.run) if typed.check else _show(typed.run, typed)


def _check(path: Path) -> int:
    import asyncio  # noqa: PLC0415
    import time  # noqa: PLC0415

    from evalkit.debug.check import check_run  # noqa: PLC0415

    began_s = time.perf_counter()
    checked = asyncio.run(check_run(path))
    elapsed_s = time.perf_counter() - began_s
    for key, found in checked.differences[:SHOWN]:
        print(f"{key}: {found}")
    if len(checked.differences) > SHOWN:
        print(f"... and {len(checked.differences) - SHOWN} more")
    same = checked.episodes - len(checked.differences)
    print(
        f"{same} of {checked.episodes} episodes came out as they were recorded; {checked.turns} "
        f"turns in {elapsed_s:.1f} s, {checked.turns / elapsed_s:,.0f} turns/s"
    )
    return 1 if checked.differences else 0


def _show(path: Path, typed: Namespace) -> int:
    from evalkit.record.chosen import read_chosen, sources  # noqa: PLC0415
    from evalkit.record.rundir import RunDir  # noqa: PLC0415
    from evalkit.show.replay import replay_lines  # noqa: PLC0415

    rundir = RunDir.open(path)
    arms = [str(arm["name"]) for arm in rundir.manifest()["arms"]]
    asked = arms if typed.arm is None else [typed.arm]
    wanted = read_chosen(sources(rundir, asked), [(typed.seed, typed.repetition)])
    if not wanted:
        raise BadConfig(
            f"{path} has no finished episode of seed {typed.seed}, "
            f"repetition {typed.repetition}; its arms are {', '.join(arms)}"
        )
    print("\n\n".join("\n".join(replay_lines(wanted[key])) for key in sorted(wanted)))
    return 0
