"""Looks for new versions, evaluates each on the same seeds, and keeps the curve's files current.

A version's run lies in `versions/LABEL/`: one that was interrupted is resumed, not begun again. A
version that cannot be played is written down as failed, and the watch goes on. What a version lost
to errors is played again, once a start, at a later look that still finds it live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from envs import digest
from evalkit.arms import env_factory
from evalkit.config import INCIDENTAL, RunConfig
from evalkit.errors import BadConfig, EvalkitError, RunFailed, UnknownModel, Unreachable
from evalkit.manifest import kept_references
from evalkit.record.numbers import gather
from evalkit.record.rundir import RunDir, TrajectoryFile, write_whole
from evalkit.record.tables import write_csv
from evalkit.run import Run, resume, start
from evalkit.watch.curve import COLUMNS, Curve, Point, Status, printable, sentence
from evalkit.watch.junit import junit
from evalkit.watch.plot import learning_curve_page, learning_curve_svg
from evalkit.watch.sources import Sleep, Source, Version
from evalkit.watch.state import Entry, State

Say = Callable[[str], None]
Tell = Callable[[Mapping[str, Any], int], None]
"""Takes a row of the curve, and how many versions there are by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to watch."""

    config: RunConfig
    """What every version plays; its model is that of the version."""
    folder: Path
    every_s: float | None
    """Between two looks; None for one look."""
    max_versions: int | None = None
    """Stop when so many were evaluated, those of earlier starts included."""
    junit: Path | None = None


class Watcher:
    """A watch."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        *,
        say: Say,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.plan, self._source, self._say, self._sleep = plan, source, say, sleep
        self._tell: Tell | None = None
        self.state = State(plan.folder, _terms(plan.config, source))
        self.curve = self._curve()
        self._tried: set[str] = set()
        self._completed: set[str] = set()

    def tell(self, tell: Tell) -> None:
        """Have every row of the curve told from now on."""
        self._tell = tell

    async def watch(self) -> bool:
        """Watch until there is no more to wait for; return whether the newest version is worse.

        Raises:
            UsageError: the first look finds no place to look at, or another policy than before.

        """
        if self.state.entries:
            self._write()
        await self._look()
        if not self.curve.rows:
            self._write()
        while self.plan.every_s is not None and not self._enough:
            await self._sleep(self.plan.every_s)
            try:
                await self._look()
            except (Unreachable, UnknownModel) as error:
                self._say(f"{error}; trying again in {self.plan.every_s:.0f} s")
        return self._newest_is_worse

    @property
    def n_failed(self) -> int:
        """How many versions could not be played."""
        return sum(entry.status is Status.FAILED for entry in self.state.entries.values())

    @property
    def _evaluated(self) -> list[Entry]:
        return [e for e in self.state.entries.values() if e.status is Status.EVALUATED]

    @property
    def _enough(self) -> bool:
        most = self.plan.max_versions
        return most is not None and len(self._evaluated) >= most

    @property
    def _newest_is_worse(self) -> bool:
        """Whether the newest that was played is worse, though an older one was played after it."""
        newest = max(self._evaluated, key=lambda entry: entry.number, default=None)
        return newest is not None and bool(self._row_of(newest.version)["worse"])

    async def _look(self) -> None:
        found = await self._source.versions()
        self._require_same_policy(found)
        self._note_missed(found)
        for version in found:
            known = self.state.entries.get(version.name)
            if known is not None and known.status is Status.EVALUATED:
                await self._complete(version, known)
            elif version.name not in self._tried and not self._enough:
                self._tried.add(version.name)
                await self._evaluate(version)

    def _require_same_policy(self, found: list[Version]) -> None:
        """Raise BadConfig for another policy: its versions have the folders of the first one's."""
        before, now = (
            {name.rpartition("@")[0] for name in names}
            for names in (self.state.entries, [version.name for version in found])
        )
        if before and now - before:
            raise BadConfig(
                f"{self.plan.folder} watches the policy {', '.join(sorted(before))}, not "
                f"{', '.join(sorted(now))}: choose another --out"
            )

    def _note_missed(self, found: list[Version]) -> None:
        """Write down the versions that came and went since the last look."""
        known = {entry.number for entry in self.state.entries.values()}
        if not (self._source.counts and known and found):
            return
        here = {version.number for version in found}
        name = found[-1].name.rpartition("@")[0]
        for entry in [*self.state.entries.values()]:
            if entry.status is None and entry.number not in here and entry.number < max(here):
                cut = "it was replaced before it was evaluated to its end"
                self._settle(replace(entry, status=Status.MISSED, message=cut))
        for number in range(max(known) + 1, max(here)):
            if number not in here:
                missed = "it was replaced before anybody looked"
                self._settle(
                    Entry(
                        version=f"{name}@{number}",
                        status=Status.MISSED,
                        number=number,
                        message=missed,
                    )
                )

    async def _evaluate(self, version: Version) -> None:
        before = self.state.entries.get(version.name)
        entry = Entry(version=version.name, status=None, number=version.number)
        try:
            served = await self._source.served(version, before.served if before else None)
            entry = replace(entry, served=served)
            self.state.settle(entry)
            run = await self._played(version, served)
            entry = replace(entry, run=str(run.path.relative_to(self.plan.folder)))
            if not any(numbers.n_ok for numbers in run.report.numbers.values()):
                raise RunFailed(f"every episode was lost to errors: {_first_failure(run)}")
        except EvalkitError as error:
            self._settle(replace(entry, status=Status.FAILED, message=_line(error)))
        else:
            self._settle(replace(entry, status=Status.EVALUATED))

    async def _complete(self, version: Version, known: Entry) -> None:
        """Play again what a version lost to errors, as long as it is served under its name."""
        lost = self._row_of(version.name)["n_error"]
        if not lost or known.served is None or version.name in self._completed:
            return
        self._completed.add(version.name)
        if known.served not in (await self._source.gateway.live()).values():
            return
        try:
            await self._played(version, known.served)
        except EvalkitError as error:
            self._say(f"{version.name}: what it lost cannot be played again: {_line(error)}")
        self.curve = self._curve()
        self._write()
        self._say(sentence(self._row_of(version.name)))

    def _row_of(self, version: str) -> dict[str, Any]:
        return next(row for row in self.curve.rows if row["version"] == version)

    async def _played(self, version: Version, served: str) -> Run:
        """Play a version's run, or what is left of it."""
        model = f"{version.label}={self._source.gateway.spec.target}#{served}"
        out = self.plan.folder / "versions" / version.label
        begun = sorted(out.glob("*/manifest.json"))
        if begun:
            limits = {k: v for k, v in self.plan.config.model_dump().items() if k in _LIMITS}
            return await resume(begun[0].parent, model=[model], **limits)
        chosen = {"model": (model,), "out": str(out), "wandb": None}
        return await start(self.plan.config.model_copy(update=chosen))

    def _settle(self, entry: Entry) -> None:
        self.state.settle(entry)
        self.curve.rows = [row for row in self.curve.rows if row["version"] != entry.version]
        row = self._row(self.curve, entry)
        self._write()
        self._say(sentence(row))
        if self._tell is not None:
            self._tell(row, len(self.state.entries))

    def _curve(self) -> Curve:
        """Make the curve anew from what was played."""
        curve = Curve()
        for entry in self.state.entries.values():
            if entry.status is not None:
                self._row(curve, entry)
        return curve

    def _row(self, curve: Curve, entry: Entry) -> dict[str, Any]:
        known: dict[str, Any] = {
            "version": entry.version,
            "status": entry.status,
            "served": entry.served,
            "message": entry.message,
        }
        if entry.status is not Status.EVALUATED or entry.run is None:
            return curve.add(known, None)
        rundir = RunDir.open(self.plan.folder / entry.run)
        manifest = rundir.manifest()
        arm = manifest["arms"][0]["name"]
        numbers = gather(TrajectoryFile(rundir.trajectories_path), [arm])[arm]
        known |= {"run_id": manifest["run_id"], "finished_at": manifest["finished_at"]}
        return curve.add(known, Point(version=entry.version, numbers=numbers))

    def _write(self) -> None:
        """Write the curve's files."""
        folder, rows = self.plan.folder, self.curve.rows
        title = f"{self.plan.config.env}: success by version"
        references = self._references()
        try:
            write_csv(folder / "learning_curve.csv", COLUMNS, rows)
            svg = learning_curve_svg(rows, references, title)
            write_whole(folder / "learning_curve.svg", svg.encode())
            page = learning_curve_page(rows, svg, title)
            write_whole(folder / "learning_curve.html", page.encode())
            if self.plan.junit is not None:
                self.plan.junit.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.plan.junit, junit(rows, self.plan.config.env))
        except OSError as error:
            raise RunFailed(f"cannot write {folder}: {error}") from error

    def _references(self) -> dict[str, float]:
        """Return the success of random and oracle on the seeds, from the first run that knows."""
        for entry in self.state.entries.values():
            if entry.status is Status.EVALUATED and entry.run is not None:
                manifest = RunDir.open(self.plan.folder / entry.run).manifest()
                known = kept_references(manifest)
                return {name: found.success_rate for name, found in known.items()}
        return {}


def _terms(config: RunConfig, source: Source) -> dict[str, Any]:
    """Return what every version of a curve has in common."""
    kept = config.model_dump(mode="json", exclude={*INCIDENTAL, "model"})
    env_digest = digest(env_factory(config)())
    checkpoints = None if source.place is None else str(source.place)
    terms = {**kept, "env_digest": env_digest, "checkpoints": checkpoints}
    return dict(orjson.loads(orjson.dumps(terms)))


def _line(error: EvalkitError) -> str:
    return printable(" ".join(str(error).split()))


_LIMITS = ("concurrency", "timeout_s", "wait_s", "attempts", "api_key_env")


def _first_failure(run: Run) -> str:
    rundir = RunDir(run.path)
    return next(
        (each.failure_message or "" for each in TrajectoryFile(rundir.trajectories_path)), ""
    )
