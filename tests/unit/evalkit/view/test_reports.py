"""Reports are kept, and not made again too often."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from evalkit.environment import cache_path
from evalkit.manifest import kept_references
from evalkit.play.reference import kept
from evalkit.view import reports
from evalkit.view.folder import Entry, RunFolder
from evalkit.view.reports import Reports

from .conftest import unfinished


class Maker:
    """Reports whose making takes a known time; counts them."""

    def __init__(self, folder: RunFolder, cost_s: float = 0.0) -> None:
        self.now = 0.0
        self.cost_s = cost_s
        self.made: list[str] = []
        self.reports = Reports(folder, clock=lambda: self.now)

    def make(self, entry: Entry) -> str:
        self.made.append(entry.name)
        self.now += self.cost_s
        return f"{entry.name} {len(self.made)}"


@pytest.fixture
def maker(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    maker = Maker(RunFolder(runs))
    monkeypatch.setattr(maker.reports, "_run_page", maker.make)
    return maker


def test_a_report_is_made_once(maker: Maker, runs: Path) -> None:
    entry = RunFolder(runs).entry("pair")
    assert [maker.reports.of_run(entry) for _ in range(3)] == ["pair 1"] * 3
    maker.now += 1e6
    assert maker.reports.of_run(entry) == "pair 1"


def test_looking_takes_a_fifth_of_the_time_at_most(maker: Maker, runs: Path) -> None:
    rest = unfinished(runs / "pair", 4)
    entry = RunFolder(runs, clock=lambda: 1e12).entry("pair")
    maker.cost_s = 10.0
    assert maker.reports.of_run(entry) == "pair 1"
    first = maker.reports.version(entry)
    with (runs / "pair" / "trajectories.jsonl").open("ab") as file:
        file.writelines(rest)
    maker.now += 39.0
    assert (maker.reports.of_run(entry), maker.reports.version(entry)) == ("pair 1", first)
    maker.now += 2.0
    assert maker.reports.version(entry) != first
    assert maker.reports.of_run(entry) == "pair 2"


def test_only_the_last_few_are_kept(maker: Maker, runs: Path) -> None:
    folder = RunFolder(runs)
    for number in range(reports.KEPT):
        (runs / f"copy{number}").mkdir()
        for file in ("manifest.json", "summary.csv", "compare.csv", "trajectories.jsonl"):
            data = (runs / "pair" / file).read_bytes()
            (runs / f"copy{number}" / file).write_bytes(data)
    maker.reports.of_run(folder.entry("pair"))
    for number in range(reports.KEPT):
        maker.reports.of_run(folder.entry(f"copy{number}"))
    assert maker.reports.of_run(folder.entry("pair")) == f"pair {reports.KEPT + 2}"


def test_a_run_that_goes_on_has_the_references_it_plays_against(made: Path) -> None:
    manifest = orjson.loads((made / "pair" / "manifest.json").read_bytes())
    seeds = manifest["config"]["seeds"]
    found = kept(manifest["env"]["digest"], seeds, cache=cache_path())
    assert found == kept_references(manifest)
    assert kept(manifest["env"]["digest"], [*seeds, 99], cache=cache_path()) is None
    assert kept("../../etc", seeds, cache=cache_path()) is None
