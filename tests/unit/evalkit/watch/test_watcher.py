"""A watch from look to look: new versions, failing ones, missed ones, a restart, the verdict."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pandas as pd
import pytest

from evalkit.config import RunConfig
from evalkit.errors import BadConfig, Unreachable
from evalkit.specs import parse_model
from evalkit.testing import FakeServer, Said
from evalkit.watch.curve import Status
from evalkit.watch.sources import FolderSource, Gateway, GatewaySource
from evalkit.watch.state import Entry
from evalkit.watch.watcher import Plan, Watcher
from tests.unit.evalkit.watch.test_sources import cards

ENV = Path(__file__).parents[2] / "envs" / "their_env.py"
SETTINGS = {
    "env": f"{ENV}:Corridor",
    "env_args": {"length": 2, "max_turns": 5},
    "seeds": "0:24",
    "concurrency": 4,
    "attempts": 1,
    "wait_s": 0.0,
}


def _plays(skill: dict[int, float], refuses: set[int]) -> Callable[[dict[str, Any]], str | Said]:
    """Return a chat that takes a step as often as the version's skill says, else none."""

    def chat(body: dict[str, Any]) -> str | Said:
        version = int(body["model"].rpartition("@")[2])
        if version in refuses:
            return 400, {"error": {"message": f"version {version} is not served"}}
        rng = random.Random(body["seed"])
        if rng.random() > skill[version]:
            return "<action>wait</action>"
        return f"<action>{rng.choice(['left', 'right'])}</action>"

    return chat


class Watched:
    """A gateway, and watches of it that follow one another on the same folder."""

    def __init__(self, server: FakeServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.said: list[str] = []
        self.told: list[tuple[str, int]] = []

    def look(self, *versions: int, **changed: Any) -> bool:
        """Begin a watch that looks once; return whether the newest version is worse."""
        self.server.models = cards(*versions)
        return asyncio.run(self.watcher(**changed).watch())

    def watcher(self, **changed: Any) -> Watcher:
        spec = parse_model(self.server.url)
        config = RunConfig.read({**SETTINGS, "model": f"version={self.server.url}"})
        plan = Plan(
            config=config,
            folder=self.folder,
            every_s=None,
            junit=self.folder / "out" / "junit.xml",
        )
        sleep = changed.pop("sleep", asyncio.sleep)
        source = GatewaySource(Gateway(spec, None))
        watcher = Watcher(replace(plan, **changed), source, say=self.said.append, sleep=sleep)
        watcher.tell(lambda row, step: self.told.append((row["version"], step)))
        return watcher

    def curve(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "learning_curve.csv")

    @property
    def n_asked(self) -> int:
        return len(self.server.received)

    def numbers(self) -> dict[str, float]:
        """Return success by version, from the CSV."""
        played = self.curve().query("status == 'evaluated'")
        return dict(zip(played["version"], played["success"], strict=True))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    skill = {1: 0.2, 2: 0.9, 3: 0.9, 6: 0.0, 7: 0.95}
    with FakeServer(_plays(skill, refuses={4}), cards()) as server:
        yield Watched(server, tmp_path / "out")


def test_each_version_is_evaluated_once_whatever_is_restarted(watched: Watched) -> None:
    assert not watched.look(1)
    asked = watched.n_asked
    assert not watched.look(1, 2)
    after = watched.n_asked
    assert after > asked
    before = {f.name: f.read_bytes() for f in watched.folder.glob("*.*")}
    assert not watched.look(1, 2)
    assert watched.n_asked == after
    assert {f.name: f.read_bytes() for f in watched.folder.glob("*.*")} == before
    assert list(watched.numbers()) == ["tiny@1", "tiny@2"]
    assert watched.told == [("tiny@1", 1), ("tiny@2", 2)]
    models = {body["model"] for body in watched.server.bodies}
    assert models == {"tiny@1", "tiny@2"}


def test_a_worse_version_is_called_so_until_there_is_a_newer_one(watched: Watched) -> None:
    assert not watched.look(2)
    assert watched.look(6)
    assert watched.look(6)
    assert not watched.look(7)
    rows = watched.curve().set_index("version")
    assert rows.loc["tiny@6", "best"] == "tiny@2"
    assert bool(rows.loc["tiny@6", "worse"])
    assert any(line.startswith("tiny@6: 0.0 % success") for line in watched.said)
    root = Xml.parse(watched.folder / "out" / "junit.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("6", "1", "3")


def test_a_version_that_is_refused_does_not_stop_the_watch(watched: Watched) -> None:
    watched.look(3, 4, 7)
    rows = watched.curve().set_index("version")
    assert rows["status"].to_dict() == {
        "tiny@3": "evaluated",
        "tiny@4": "failed",
        "tiny@7": "evaluated",
    }
    assert "version 4 is not served" in str(rows.loc["tiny@4", "message"])
    assert watched.watcher().n_failed == 1


def test_a_version_that_failed_is_tried_again_at_the_next_start(watched: Watched) -> None:
    watched.look(3, 4)
    watched.server._chat = _plays({4: 0.9}, refuses=set())
    watched.look(3, 4)
    assert list(watched.numbers()) == ["tiny@3", "tiny@4"]
    assert watched.watcher().n_failed == 0


def test_versions_that_came_and_went_are_missed(watched: Watched) -> None:
    watched.look(1)
    watched.look(3)
    watched.look(3)
    status = watched.curve().set_index("version")["status"].to_dict()
    assert status == {"tiny@1": "evaluated", "tiny@2": "missed", "tiny@3": "evaluated"}
    watched.look(2)
    assert list(watched.numbers()) == ["tiny@1", "tiny@3", "tiny@2"]


def test_an_older_version_that_is_worse_is_not_the_newest(watched: Watched) -> None:
    watched.look(2)
    watched.look(7)
    assert not watched.look(6, 7)
    rows = watched.curve().set_index("version")
    assert rows.index[-1] == "tiny@6"
    assert bool(rows.loc["tiny@6", "worse"])


def test_what_a_version_lost_is_played_again_where_it_stands(watched: Watched) -> None:
    plays = watched.server._chat

    def loses(body: dict[str, Any]) -> str | Said:
        lost = body["model"] == "tiny@2" and body["seed"] % 5 == 0
        return (500, {}) if lost else plays(body)

    watched.look(2)
    whole = watched.numbers()["tiny@2"]
    again = Watched(watched.server, watched.folder.with_name("again"))
    watched.server._chat = loses
    again.look(2, 7)
    n_lost = int(again.curve().query("version == 'tiny@2'")["n_error"].iloc[0])
    assert 0 < n_lost < 24
    assert any(f"{n_lost} episodes lost to errors" in line for line in again.said)
    watched.server._chat = plays
    before = again.n_asked
    again.look(7)
    assert again.n_asked == before
    again.look(2, 7)
    curve = again.curve()
    assert curve["version"].tolist() == ["tiny@2", "tiny@7"]
    assert curve["n_error"].tolist() == [0, 0]
    assert again.numbers()["tiny@2"] == whole
    assert {body["model"] for body in watched.server.bodies[before:]} == {"tiny@2"}
    before = again.n_asked
    again.look(2, 7)
    assert again.n_asked == before


def test_a_version_that_was_cut_off_and_replaced_is_missed(watched: Watched) -> None:
    watched.look(1)
    state = watched.watcher().state
    state.settle(Entry(version="tiny@2", status=None, number=2, served="tiny@2"))
    watched.look()
    assert watched.curve()["version"].tolist() == ["tiny@1"]
    watched.look(3)
    rows = watched.curve().set_index("version")
    assert rows["status"].to_dict() == {
        "tiny@1": "evaluated",
        "tiny@2": "missed",
        "tiny@3": "evaluated",
    }
    assert "replaced before it was evaluated to its end" in str(rows.loc["tiny@2", "message"])


def test_another_policy_needs_another_folder(watched: Watched) -> None:
    watched.look(1)
    watched.server.models = cards(1, policy="other")
    with pytest.raises(BadConfig, match="watches the policy tiny, not other: choose another --out"):
        asyncio.run(watched.watcher().watch())


def test_another_env_of_the_same_name_needs_another_folder(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.look(1)
    monkeypatch.setattr("evalkit.watch.watcher.digest", lambda _: "other")
    with pytest.raises(BadConfig, match=r"watches with env_digest = '.*', not 'other'"):
        watched.look(1, 2)


def test_a_folder_of_checkpoints_is_not_taken_for_another(watched: Watched, tmp_path: Path) -> None:
    watched.look(1)
    gateway = Gateway(parse_model(watched.server.url), None)
    source = FolderSource(tmp_path, gateway, wait_s=1.0)
    plan = watched.watcher().plan
    with pytest.raises(BadConfig, match="watches with checkpoints = None"):
        Watcher(plan, source, say=watched.said.append)


def test_a_look_that_finds_nothing_leaves_the_files_too(watched: Watched) -> None:
    assert not watched.look()
    root = Xml.parse(watched.folder / "out" / "junit.xml").getroot()
    assert root.get("tests") == "0"
    assert watched.curve().empty


def test_a_message_of_a_server_breaks_no_file(watched: Watched) -> None:
    watched.server._chat = lambda _: (400, {"error": {"message": "\x1b[2J\x00 <b>&"}})
    watched.look(3)
    Xml.parse(watched.folder / "learning_curve.svg")
    assert "\x1b" not in watched.said[-1]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(watched: Watched) -> None:
    whole = Watched(watched.server, watched.folder.with_name("whole"))
    whole.look(2)
    asked = watched.n_asked
    plays = watched.server._chat

    def dies(body: dict[str, Any]) -> str | Said:
        return plays(body) if watched.n_asked < asked + 20 else (503, {})

    watched.server._chat = dies
    watched.look(2)
    assert watched.curve()["status"].tolist() == ["failed"]
    watched.server._chat = plays
    before = watched.n_asked
    watched.look(2)
    assert watched.numbers() == whole.numbers()
    assert watched.n_asked - before < asked
    assert len(list((watched.folder / "versions" / "v2").iterdir())) == 1


def test_it_looks_until_it_has_enough_and_outlasts_an_absence(watched: Watched) -> None:
    looks: list[float] = []

    async def sleep(seconds: float) -> None:
        looks.append(seconds)
        away: list[Any] = [(503, {}), (404, {}), cards(policy="other"), cards(2)]
        watched.server.models = away[len(looks) - 1]

    watched.server.models = cards(1)
    watcher = watched.watcher(every_s=7.0, max_versions=2, sleep=sleep)
    assert not asyncio.run(watcher.watch())
    assert looks == [7.0] * 4
    assert any("trying again in 7 s" in line for line in watched.said)
    assert list(watched.numbers()) == ["tiny@1", "tiny@2"]


def test_the_first_look_must_find_a_gateway(watched: Watched) -> None:
    watched.server.models = (500, {"error": {"message": "broken"}})
    with pytest.raises(Unreachable):
        asyncio.run(watched.watcher(every_s=1.0).watch())


def test_other_settings_need_another_folder(watched: Watched) -> None:
    watched.look(1)
    config = RunConfig.read({**SETTINGS, "k": 2, "model": f"version={watched.server.url}"})
    with pytest.raises(BadConfig, match="watches with k = 1, not 2"):
        watched.look(1, config=config)


def test_the_curve_is_made_anew_from_what_was_played(watched: Watched) -> None:
    watched.look(1, 2)
    before = (watched.folder / "learning_curve.csv").read_bytes()
    (watched.folder / "learning_curve.csv").unlink()
    watched.look(1, 2)
    assert (watched.folder / "learning_curve.csv").read_bytes() == before
    assert watched.watcher().state.entries["tiny@2"].status is Status.EVALUATED
