"""Versions published under load: who fails, what is lost, which labels are wrong, who has to wait.

    python bench/swaps.py [--swaps 200] [--clients 16] [--only full,lora] [--quiet-s 10]

For each of two parts a gateway with one real vLLM is started, with a tiny model that is made first;
clients ask all the time, in four ways, and one version after the other is published, each with
probes and `keep`, the next one as soon as the last one is live.

full    All the weights change.
lora    Adapters over one base; meanwhile evaluations run on the base and on the first adapter, and
        two more clients ask the base.

Then torch, which knows the weights of every version, computes each token's logprob by the version
that its label says. Prints a table; exits with 1 if anything failed, was lost or had a wrong label.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

# bench/evalkit.py has the package's name: search the installed one first.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
sys.path.insert(0, str(HERE.parent))

from bench.swap_parts.clients import Answer, Clients  # noqa: E402
from bench.swap_parts.judge import Judge, Verdict  # noqa: E402
from bench.swap_parts.site import (  # noqa: E402
    NAME,
    Pinned,
    Swap,
    evaluating,
    gateway,
    publish,
)
from serve.wire import PolicyKind  # noqa: E402

PARTS = ("full", "lora")
EARLY = "early"
"""The alias of the first adapter, which keeps it loaded."""
_MAX_LORAS = 4
_BASE_CLIENTS = 2
_PROMPTS = 12
_QUIET_ANSWERS = 4
"""For each client, before anything is published."""
_POLL_S = 0.05
_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One part's numbers."""

    part: str
    swaps: Sequence[Swap]
    answers: Sequence[Answer]
    verdict: Verdict
    pinned: Sequence[Pinned]

    @property
    def is_clean(self) -> bool:
        """Whether nothing failed, was lost or had a wrong label, pinned turns included."""
        verdict = self.verdict
        return not (verdict.failed or verdict.lost or verdict.wrong) and all(
            not (each.errors or each.differing) and each.labels == {str(each.version)}
            for each in self.pinned
        )

    @property
    def quiet_gaps_s(self) -> list[float]:
        """The gaps between two chunks before anything was published."""
        return [gap for each in self._quiet for gap in each.gaps_s]

    @property
    def quiet_pauses_s(self) -> list[float]:
        """The longest gap of each stream before anything was published."""
        return [max(each.gaps_s) for each in self._quiet if each.gaps_s]

    @property
    def quiet_firsts_s(self) -> list[float]:
        """What each stream waited for its first chunk before anything was published."""
        return [each.came_s[0] - each.started_s for each in self._quiet if each.came_s]

    @property
    def firsts_s(self) -> list[float]:
        """Likewise from then on."""
        later = [each for each in self.answers if each.ended_s >= self.swaps[0].started_s]
        return [each.came_s[0] - each.started_s for each in later if each.came_s]

    @property
    def _quiet(self) -> list[Answer]:
        return [each for each in self.answers if each.ended_s < self.swaps[0].started_s]

    @property
    def pauses_s(self) -> list[float]:
        """The longest gap of each stream during which a version went live."""
        return [max(each.gaps_s) for each in self.answers if each.gaps_s and self._spans(each)]

    def _spans(self, answer: Answer) -> bool:
        """Whether a version went live between an answer's first chunk and its last."""
        live_s = [swap.live_s for swap in self.swaps]
        first_s, last_s = answer.came_s[0], answer.came_s[-1]
        return answer.end is not None or bisect(live_s, first_s) < bisect(live_s, last_s)


async def measure(part: str, swaps: int, clients: int, folder: Path, quiet_s: float) -> Result:
    """Publish so many versions under the load of so many clients, and judge what they got."""
    # Torch and transformers: not for --help.
    from bench.swap_parts.versions import TOLERANCE, Versions  # noqa: PLC0415

    kind = PolicyKind.LORA if part == "lora" else PolicyKind.FULL
    versions = Versions(folder / "versions", kind, swaps + 1)
    probes = {version: versions.probes(version) for version in range(2, swaps + 2)}
    engine: dict[str, object] = {"max_model_len": 512}
    pinned: list[Pinned] = []
    rules: dict[str, object] = {}
    if kind is PolicyKind.LORA:
        engine |= {"lora": True, "max_loras": _MAX_LORAS}
        rules = {"aliases": {EARLY: f"{NAME}@2"}}
        pinned = [Pinned(version=1, model=f"{NAME}@1"), Pinned(version=2, model=EARLY)]
    made: list[Swap] = []
    with gateway(versions.boot, folder, engine, **rules) as port:
        prompts = versions.prompts(_PROMPTS)
        load = Clients(port, NAME, prompts, clients)
        fixed = Clients(port, f"{NAME}@1", prompts, _BASE_CLIENTS if pinned else 0)
        async with load.asking(), fixed.asking(), asyncio.TaskGroup() as group:
            await _quiet(load, quiet_s, clients)
            for version, proof in probes.items():
                at = versions.folder(version)
                made.append(await asyncio.to_thread(publish, port, at, version, proof, kind))
                for each in pinned if version == 2 else ():
                    out = folder / f"evaluation-{each.version}"
                    group.create_task(evaluating(port, each, out, lambda: len(made) == swaps))
                _progress(part, version, swaps, load)
            await asyncio.sleep(_AFTER_S)
    answers = [*load.answers, *fixed.answers]
    print(f"{part}: judging {len(answers)} answers", file=sys.stderr, flush=True)
    started_s = [swap.started_s for swap in made]
    judge = Judge(
        versions.score,
        lambda at_s: 1 + bisect(started_s, at_s),
        TOLERANCE,
        by_spans=kind is PolicyKind.FULL,
    )
    verdict = judge.judge(answers)
    return Result(part=part, swaps=made, answers=answers, verdict=verdict, pinned=pinned)


async def _quiet(load: Clients, quiet_s: float, clients: int) -> None:
    """Let the load run for a while, and until there are answers to compare with."""
    await asyncio.sleep(quiet_s)
    while len(load.answers) < _QUIET_ANSWERS * clients:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)


def _progress(part: str, version: int, swaps: int, load: Clients) -> None:
    if (version - 1) % 20 == 0 or version - 1 == swaps:
        failed = sum(answer.failure != "" for answer in load.answers)
        told = f"{version - 1} of {swaps} versions, {len(load.answers)} answers, {failed} failed"
        print(f"{part}: {told}", file=sys.stderr, flush=True)


def table(results: Sequence[Result]) -> list[str]:
    """Return the table, a column for each part."""
    columns = [_cells(result) for result in results]
    lines = ["| | " + " | ".join(result.part for result in results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _cells(result: Result) -> dict[str, str]:
    swaps, verdict = result.swaps, result.verdict
    took_s = [swap.live_s - swap.started_s for swap in swaps]
    wall_s = swaps[-1].live_s - swaps[0].started_s
    quiet_s, pauses_s = result.quiet_gaps_s, result.pauses_s
    return {
        "versions published": str(len(swaps)),
        "versions that made tokens": str(len(verdict.versions)),
        "versions/s": f"{len(swaps) / wall_s:.2f}",
        "s from publish to live: median, p95, max": _spread(took_s, 1, 2),
        "answers": f"{verdict.answers:,}",
        "tokens": f"{verdict.tokens:,}",
        "**failed requests**": str(len(verdict.failed)),
        "**answers that lost tokens**": str(len(verdict.lost)),
        "**wrong labels**": str(len(verdict.wrong)),
        "begun by one version, finished by another": f"{verdict.crossing:,}",
        "largest difference to torch, nats": f"{verdict.worst:.1e}",
        "right by the version before as well": str(verdict.blind),
        "ms between two chunks, before the first: median, p95, max": _spread(quiet_s, 1000, 0),
        "longest gap of a stream, ms, before the first": _spread(result.quiet_pauses_s, 1000, 0),
        "streams across a swap": f"{len(pauses_s):,}",
        "longest gap of a stream, ms, across a swap": _spread(pauses_s, 1000, 0),
        "ms to the first chunk, before the first": _spread(result.quiet_firsts_s, 1000, 0),
        "ms to the first chunk, from then on": _spread(result.firsts_s, 1000, 0),
        **{f"evaluation pinned to version {n}": "" for n in (1, 2)},
        **{f"evaluation pinned to version {each.version}": _pinned(each) for each in result.pinned},
    }


def _pinned(pinned: Pinned) -> str:
    labels = ", ".join(sorted(pinned.labels))
    return (
        f"{pinned.rounds} rounds, {pinned.turns} turns, {pinned.errors} errors, "
        f"labels: {labels}; rounds unlike the first: {pinned.differing}"
    )


def _spread(values: Sequence[float], factor: float, digits: int) -> str:
    if len(values) < 2:
        return "-"
    p95 = quantiles(values, n=20, method="inclusive")[-1]
    found = (median(values), p95, max(values))
    return ", ".join(f"{each * factor:,.{digits}f}" for each in found)


def main() -> int:
    """Measure the parts, print the table, and say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=200, help="versions published in each part")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", default=",".join(PARTS), help="full,lora")
    parser.add_argument("--quiet-s", type=float, default=10.0, help="of load before the first one")
    options = parser.parse_args()
    parts = [part for part in PARTS if part in options.only.split(",")]
    if not parts or options.swaps < 2 or options.clients < 1:
        parser.error(f"expected --only from {', '.join(PARTS)}, 2 --swaps and a client or more")
    # So that the gateway is stopped, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    results = []
    for part in parts:
        print(f"{part}: load average {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            result = asyncio.run(
                measure(part, options.swaps, options.clients, Path(folder), options.quiet_s)
            )
        for problem in (*result.verdict.failed, *result.verdict.lost, *result.verdict.wrong)[:20]:
            print(f"{part}: {problem}", file=sys.stderr, flush=True)
        results.append(result)
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {options.clients} clients, one replica, one run each\n")
    print("\n".join(table(results)))
    return 0 if all(result.is_clean for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
