"""The reports that stand in a frame: made of what was played so far, kept until there is more.

One is made at a time, and a run that goes on is not worked out again before some time has passed:
looking must not slow down what is looked at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from evalkit.compared import compare
from evalkit.environment import cache_path
from evalkit.manifest import fixed_margin, identities, kept_references
from evalkit.play.reference import kept
from evalkit.record.rundir import RunDir
from evalkit.show.html.page import html_page
from evalkit.show.report import make_report
from evalkit.show.sequential import sequential
from evalkit.view.folder import Entry, RunFolder, RunState
from evalkit.view.live import Played
from evalkit.view.pages import words

MIN_AGE_S = 2.0
AGE_PER_COST = 4.0
"""A report is made again no sooner than after this many times what making it took."""
KEPT = 8


@dataclass(frozen=True, slots=True)
class _Made:
    text: str
    version: tuple[int, ...]
    made_s: float
    cost_s: float


class Reports:
    """Makes reports, and keeps the last few."""

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._made: dict[tuple[str, ...], _Made] = {}
        self._lock = threading.Lock()

    def of_run(self, entry: Entry) -> str:
        """Return the report of a run as a page.

        Raises:
            NotFound: it is not a run of this folder.
            DamagedRun: it cannot be read.

        """
        return self._kept((entry.name,), self._version(entry), lambda: self._run_page(entry))

    def version(self, entry: Entry) -> str:
        """Name what a run's report is made of when it is asked for now."""
        known, version = self._made.get((entry.name,)), self._version(entry)
        if known is not None and _is_young(known, version, self._clock()):
            version = known.version
        return "-".join(map(str, version))

    def of_two(self, a: str, b: str) -> str:
        """Return the comparison of two finished runs as a page.

        Raises:
            NotFound: one is not a run of this folder.
            BadConfig: they cannot be compared.

        """
        runs = [self._folder.run(name) for name in (a, b)]
        version = (0, *map(_stamp, runs))

        def make() -> str:
            return html_page(compare(runs[0].path, runs[1].path, names=("A", "B")))

        return self._kept((a, b), version, make)

    def _version(self, entry: Entry) -> tuple[int, ...]:
        if entry.state is RunState.FINISHED:
            return (_stamp(self._folder.run(entry.name)), 1)
        return (self._folder.played(entry.name).look(), 0)

    def _run_page(self, entry: Entry) -> str:
        rundir = self._folder.run(entry.name)
        manifest = rundir.manifest()
        played = self._folder.played(entry.name)
        if entry.state is RunState.FINISHED:  # its numbers are needed once, and may be many
            played = Played(rundir.path, played.arms)
            played.look()
        known = None
        if "references" in manifest:
            known = kept_references(manifest)
        elif (digest := entry.env_digest).isalnum():
            known = kept(digest, manifest["config"]["seeds"], cache=cache_path())
        numbers, goes_on = played.numbers(), entry.state is not RunState.FINISHED
        report = make_report(
            numbers, identities(manifest), known or {}, margin=fixed_margin(manifest)
        )
        report = replace(
            report,
            sequential=sequential(manifest["config"], numbers, report.pairs),
            unfinished=words(entry) if goes_on else "",
        )
        return html_page(report, rundir, live=entry.state is RunState.RUNNING)

    def _kept(
        self, which: tuple[str, ...], version: tuple[int, ...], make: Callable[[], str]
    ) -> str:
        with self._lock:
            known, now = self._made.get(which), self._clock()
            if known is not None and (known.version == version or _is_young(known, version, now)):
                return known.text
            text = make()
            ended = self._clock()
            self._made.pop(which, None)
            self._made[which] = _Made(text, version, ended, ended - now)
            while len(self._made) > KEPT:
                self._made.pop(next(iter(self._made)))
            return text


def _is_young(made: _Made, version: tuple[int, ...], now: float) -> bool:
    """Whether a report is too young to be made again; that of a run's end never is."""
    if made.version[1:] != version[1:]:
        return False
    return now - made.made_s < max(MIN_AGE_S, AGE_PER_COST * made.cost_s)


def _stamp(rundir: RunDir) -> int:
    """Return when a run's episodes were changed last, 0 where there are none."""
    path = rundir.trajectories_path
    return path.stat().st_mtime_ns if path.exists() else 0
