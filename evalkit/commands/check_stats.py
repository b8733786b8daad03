"""`evalkit check-stats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.arguments import Parser
from evalkit.errors import BadConfig

if TYPE_CHECKING:
    from evalkit.judge.promises import Promise


def command(words: Sequence[str]) -> int:
    """Check by simulation, on this machine, what the statistics of a report promise.

    A policy is compared with itself, by the fixed and by the sequential test, and intervals are
    held against data whose truth is known. With RUN, its success rates, seeds and repetitions are
    taken. The exit code is 1 if a promise is broken.
    """
    parser = Parser(prog="evalkit check-stats", description=command.__doc__)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run's directory")
    parser.add_argument(
        "--simulations",
        type=int,
        default=1_000,
        metavar="N",
        help="comparisons of equal arms; intervals take half as many (default 1000, 10 seconds)",
    )
    typed = parser.parse_args(words)
    if not 2 <= typed.simulations <= 1_000_000:
        raise BadConfig(f"--simulations is 2 to 1000000, not {typed.simulations}")
    from evalkit.judge.promises import promises  # noqa: PLC0415

    n_seeds, k, rates = _of_run(typed.run) if typed.run else (200, 1, None)
    width = 58
    print(f"{'':6}{'promise':{width}} {'seeds':>6} {'found':>7}  limit")
    broken = 0
    for promise in promises(typed.simulations, n_seeds, k, rates):
        broken += not promise.kept
        print(_line(promise, width), flush=True)
    kept = f"{broken} promises are broken" if broken else "every promise is kept"
    print(f"\n{kept}; limits of what is simulated leave room for three standard errors")
    return 1 if broken else 0


def _line(promise: Promise, width: int) -> str:
    word = "" if not promise.made else "ok" if promise.kept else "BROKEN"
    limit = ""
    if promise.at_least is not None:
        limit = f"at least {100 * promise.at_least:.1f} %"
    if promise.at_most is not None:
        limit = f"at most {100 * promise.at_most:.1f} %"
    said = f"{promise.name:{width}} {promise.n_seeds:6d} {100 * promise.found:5.1f} %"
    return f"{word:6}{said}  {limit:16} {promise.case}".rstrip()


def _of_run(path: Path) -> tuple[int, int, list[float]]:
    """Return a run's number of seeds, repetitions, and chances of success by seed.

    Seeds that were played by one arm, once, all get the rate of the run: one outcome says little.
    """
    from evalkit.manifest import identities  # noqa: PLC0415
    from evalkit.record.numbers import gather  # noqa: PLC0415
    from evalkit.record.rundir import RunDir, episodes  # noqa: PLC0415

    rundir = RunDir.open(path)
    manifest = rundir.manifest()
    by_seed: dict[int, list[float]] = {}
    for arm in gather(episodes(rundir.trajectories_path), identities(manifest)).values():
        for seed, values in arm.success.items():
            by_seed.setdefault(seed, []).extend(values)
    if not by_seed:
        raise BadConfig(f"{path} has no scored episode: nothing to take rates from")
    return len(by_seed), int(manifest["config"]["k"]), _rates(by_seed)


def _rates(by_seed: Mapping[int, Sequence[float]]) -> list[float]:
    if all(len(values) == 1 for values in by_seed.values()):
        return [sum(values[0] for values in by_seed.values()) / len(by_seed)]
    return [sum(values) / len(values) for values in by_seed.values()]
