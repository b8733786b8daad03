"""The best of a folder of runs: tables of arms in Markdown, between two marks of a file.

Only what played the same env, by digest, with the same parameters and strategy stands in one table.
A function of the runs alone: the same runs give the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from evalkit.errors import BadConfig, DamagedRun, EvalkitError
from evalkit.judge.compare import compare
from evalkit.judge.multiple import holm, tied_sets
from evalkit.judge.unpaired import independent_difference_p
from evalkit.manifest import kept_references
from evalkit.record.references import Reference
from evalkit.record.rundir import RunDir, write_whole
from evalkit.record.tables import read_csv
from evalkit.show.report import markdown_table
from evalkit.show.verdict import share
from evalkit.view.folder import RunFolder, number, why

BEGIN, END = "<!-- leaderboard -->", "<!-- /leaderboard -->"
ALPHA = 0.05
STOPPED = " †"
HEAD = (
    "#|ties|arm|model|answers|success|95 % CI|n|norm. score|tokens/success|date|commit|run"
).split("|")
NOTE = (
    "Made by `python -m evalkit leaderboard`; what is between these two marks is written anew. "
    "Arms stand in the order of their success; # is 1 plus the number of arms that were found "
    "better, and arms that share a letter were not told apart (5 %, Holm over the pairs of a "
    "table; paired where most seeds are shared). † marks runs that stopped when they were decided: "
    "their intervals and ties are those of a fixed number of seeds, and say too much."
)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|&~!#])")

Outcomes = Mapping[int, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An arm of a finished run, with what its row says."""

    run: str
    """The run's name in its folder."""
    run_id: str
    arm: str
    model: str
    env: str
    env_version: str
    env_digest: str
    env_args: str
    strategy: str
    guided: bool
    success: float
    lo: float
    hi: float
    n: int
    stopped: bool
    """Whether the run looked on the way and stopped when it was decided."""
    norm_score: float | None
    tokens_per_success: float | None
    date: str
    commit: str
    outcomes: Outcomes
    """0 or 1 of every episode that counts, by env seed."""
    references: Mapping[str, Reference]

    @property
    def table(self) -> tuple[str, str, str, str]:
        """What all arms of a table have in common."""
        return (self.env, self.env_args, self.strategy, self.env_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """What was written, and what a person should know of it."""

    text: str
    """Markdown, without the marks."""
    tables: int
    arms: int
    warnings: tuple[str, ...]


def leaderboard(folder: Path, beside: Path) -> Leaderboard:
    """Rank the arms of the finished runs of a folder; links are those of a file in `beside`.

    Raises:
        BadConfig: no finished run is there.

    """
    runs = RunFolder(folder)
    places, warnings = _places(runs)
    if not places:
        raise BadConfig(f"{folder} holds no finished run: nothing to rank")
    tables: dict[tuple[str, str, str, str], list[Place]] = {}
    for place in places:
        tables.setdefault(place.table, []).append(place)
    digests: dict[tuple[str, str, str], set[str]] = {}
    for *same, digest in tables:
        digests.setdefault((same[0], same[1], same[2]), set()).add(digest)
    for (env, args, strategy), found in sorted(digests.items()):
        if len(found) > 1:
            versions = f"{env} {args} was played in {len(found)} versions of its source"
            warnings.append(f"{versions} ({strategy}): a table each")
    lines = [NOTE]
    for key, arms in sorted(tables.items()):
        several = len(digests[key[0], key[1], key[2]]) > 1
        lines += ["", *_table(arms, runs.root, beside, several=several)]
    return Leaderboard(
        text="\n".join(lines), tables=len(tables), arms=len(places), warnings=tuple(warnings)
    )


def write_leaderboard(file: Path, board: Leaderboard) -> None:
    """Put a leaderboard between the marks of a file, or at its end; what else is there stays.

    Raises:
        BadConfig: the marks are not one pair, or the file cannot be written.

    """
    block = f"{BEGIN}\n\n{board.text}\n\n{END}"
    try:
        before = file.read_bytes().decode() if file.exists() else "# Results\n"
        write_whole(file, _with_block(before, block, file).encode())
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"cannot write {file}: {error}") from error


def _with_block(text: str, block: str, file: Path) -> str:
    begins, ends = text.count(BEGIN), text.count(END)
    if (begins, ends) == (0, 0):
        return f"{text.rstrip()}\n\n{block}\n"
    if (begins, ends) != (1, 1) or text.index(END) < text.index(BEGIN):
        raise BadConfig(
            f"{file}: expected one {BEGIN} and one {END} after it, found {begins} and {ends}"
        )
    return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]


def _places(runs: RunFolder) -> tuple[list[Place], list[str]]:
    """Return the arms of all finished runs, and say of the others why they are left out.

    Of runs with one id, which asked for the same, the latest stands for all.
    """
    latest: dict[str, tuple[str, list[Place]]] = {}
    warnings = []
    for name in runs.names():
        rundir = runs.run(name)
        try:
            places = _places_of(name, rundir)
        except (EvalkitError, OSError, KeyError, TypeError, ValueError) as error:
            warnings.append(f"{name} is left out: {why(error)}")
            continue
        for place in places:
            known = latest.setdefault(place.run_id, (place.date, places))
            if known[0] <= place.date:
                latest[place.run_id] = (place.date, places)
    found = [place for _, places in latest.values() for place in places]
    return sorted(found, key=lambda place: (place.run, place.arm)), warnings


def _places_of(name: str, rundir: RunDir) -> list[Place]:
    manifest = rundir.manifest()
    if manifest["finished_at"] is None:
        raise BadConfig("it is not finished")
    if manifest.get("shard"):
        raise BadConfig("it is a shard: python -m evalkit merge")
    if manifest.get("fork"):
        raise BadConfig("it is a fork: its episodes were not played as a policy plays")
    outcomes: dict[str, dict[int, list[float]]] = {}
    for row in read_csv(rundir.path / "episodes.csv"):
        if row["scored"] == "true":
            of_arm = outcomes.setdefault(row["arm"], {})
            of_arm.setdefault(int(row["env_seed"]), []).append(float(row["success"] == "true"))
    references = kept_references(manifest) if "references" in manifest else {}
    rows = read_csv(rundir.path / "summary.csv")
    return [
        _place(name, row, manifest, outcomes.get(row["arm"], {}), references)
        for row in rows
        if int(row["n_ok"]) > 0
    ]


def _place(
    name: str,
    row: Mapping[str, str],
    manifest: Mapping[str, Any],
    outcomes: Outcomes,
    references: Mapping[str, Reference],
) -> Place:
    success, lo, hi = (number(row[key]) for key in ("success_rate", "success_lo", "success_hi"))
    if success is None or lo is None or hi is None:
        raise DamagedRun("summary.csv has no success rate")
    return Place(
        run=name,
        run_id=row["run_id"],
        arm=row["arm"],
        model=row["model"],
        env=row["env"],
        env_version=row["env_version"],
        env_digest=row["env_hash"],
        env_args=_arguments(row["env_args"]),
        strategy=row["strategy"],
        guided=row["guided"] == "true",
        success=success,
        lo=lo,
        hi=hi,
        n=int(row["n_ok"]),
        stopped=manifest["config"].get("stop") is not None,
        norm_score=number(row["norm_score"]),
        tokens_per_success=number(row["tokens_per_success"]),
        date=str(manifest["finished_at"]),
        commit=row["git_sha"][:7],
        outcomes=outcomes,
        references=references,
    )


def _table(places: Sequence[Place], root: Path, beside: Path, *, several: bool) -> list[str]:
    """Return the table of arms that played the same, with its heading."""
    ordered = sorted(places, key=lambda place: (-place.success, place.run, place.arm))
    letters, better = _ties(ordered)
    first = ordered[0]
    heading = f"### {_text(first.env)}, {_text(first.strategy)}"
    about = f"version {_text(first.env_version)}, digest {_text(first.env_digest)}"
    if first.env_args:
        about = f"{_text(first.env_args)}; {about}"
    rows = [HEAD]
    for index, place in enumerate(ordered):
        where = quote(os.path.relpath(root / place.run, beside.resolve()))
        rows.append(
            [
                str(1 + better[index]),
                letters[index],
                _text(place.arm),
                _text(place.model),
                "guided" if place.guided else "free",
                share(place.success),
                f"{share(place.lo)} .. {share(place.hi)}",
                f"{place.n}{STOPPED * place.stopped}",
                "" if place.norm_score is None else f"{round(place.norm_score, 2) + 0.0:.2f}",
                "" if place.tokens_per_success is None else f"{place.tokens_per_success:.0f}",
                _text(place.date[:10]),
                _text(place.commit),
                f"[{_text(place.run)}]({where}/)",
            ]
        )
    rows += _reference_rows(ordered)
    lines = [heading, "", about + ".", ""]
    if several:
        lines[2] += (
            " Other tables of this env are of another version of its source: not comparable."
        )
    return lines + markdown_table(rows)


def _reference_rows(places: Sequence[Place]) -> list[list[str]]:
    """Return what random and oracle score on the seeds of the run that has most of them."""
    widest = min(places, key=lambda place: (-len(place.outcomes), place.run))
    norms = {"random": "0.00", "oracle": "1.00"}
    rows = []
    for name, reference in sorted(widest.references.items(), key=lambda item: item[0] != "oracle"):
        cells = dict.fromkeys(HEAD, "")
        cells["arm"] = f"*{_text(name)}*"
        cells["success"] = share(reference.success_rate)
        cells["n"] = str(reference.n_episodes)
        cells["norm. score"] = norms.get(name, "")
        rows.append(list(cells.values()))
    return rows


def _ties(places: Sequence[Place]) -> tuple[list[str], list[int]]:
    """Return, for arms in order, the letters of their ties and how many others are better."""
    pairs = list(combinations(range(len(places)), 2))
    p_values = [_p(places[a].outcomes, places[b].outcomes) for a, b in pairs]
    differ = [pair for pair, p in zip(pairs, holm(p_values), strict=True) if p <= ALPHA]
    ids = [str(index) for index in range(len(places))]
    sets = tied_sets(ids, [(ids[a], ids[b]) for a, b in differ])
    letters = [",".join(_letter(n) for n, tied in enumerate(sets) if each in tied) for each in ids]
    better = [sum(b == index for _, b in differ) for index in range(len(places))]
    return letters, better


def _p(a: Outcomes, b: Outcomes) -> float:
    """Return the p-value of two arms' success: paired where most of their seeds are shared."""
    shared = a.keys() & b.keys()
    if shared and 2 * len(shared) >= max(len(a), len(b)):
        found = compare(a, b, binary=True)
        return 1.0 if found.p is None else found.p
    return independent_difference_p(a, b)


def _letter(index: int) -> str:
    """Return a, b, ... z, aa, ab ..."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(97 + rest) + text
    return text


def _arguments(text: str) -> str:
    """Write the parameters of an env as they are typed, in order."""
    values = orjson.loads(text)
    if not isinstance(values, dict):
        raise DamagedRun("summary.csv has env_args that are no object")
    return " ".join(
        f"{name}={value if isinstance(value, str) else orjson.dumps(value).decode()}"
        for name, value in sorted(values.items())
    )


def _text(text: str) -> str:
    """Write a text of others as Markdown that shows it, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
