"""Which episodes are shown, and that the page stays small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from evalkit.record.chosen import Source
from evalkit.record.numbers import gather
from evalkit.record.testing import arms_of, lost, played
from evalkit.record.trajectory import Outcome, Trajectory
from evalkit.show.html import episodes
from evalkit.show.html.episodes import Choice, choose, episode_data


def _written(path: Path, *trajectories: Trajectory) -> Path:
    path.write_bytes(b"".join(one.to_json() + b"\n" for one in trajectories))
    return path


def _seeds(choices: list[Choice], kind: str) -> list[int]:
    return [one.seed for one in choices if one.kind == kind]


def test_flips_come_first_by_turns_then_errors_then_the_rest() -> None:
    choices, counts = choose(arms_of(A="001110.1", B="110011.1"))
    assert counts == {"flip": 5, "error": 1, "alike": 2}
    assert _seeds(choices, "flip") == [0, 2, 1, 3, 5]  # won by B, by A, by B...
    assert _seeds(choices, "error") == [6]
    assert _seeds(choices, "alike") == [4, 7]
    assert [one.kind for one in choices] == ["flip"] * 5 + ["error"] + ["alike"] * 2


def test_a_choice_is_bounded_and_has_some_of_each() -> None:
    choices, counts = choose(arms_of(A="01." * 400, B="101" * 400))
    assert counts == {"flip": 800, "error": 400, "alike": 0}
    assert len(choices) == 40
    assert (len(_seeds(choices, "flip")), len(_seeds(choices, "error"))) == (32, 8)


def test_a_lone_arm_shows_losses_and_wins() -> None:
    choices, _ = choose(arms_of(A="1100"))
    assert [(one.kind, one.seed) for one in choices] == [
        *(("alike", 2), ("alike", 0), ("alike", 3), ("alike", 1)),
    ]


def test_of_a_flip_the_repetition_is_shown_in_which_it_flips() -> None:
    made = [
        played(3, arm, success=mark == "1", repetition=n)
        for arm, marks in {"A": "110", "B": "111"}.items()
        for n, mark in enumerate(marks)
    ]
    choices, _ = choose(gather(made, ["A", "B"]))
    assert choices == [Choice(kind="flip", seed=3, repetition=2)]


def test_episodes_of_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    one, two = played(4, "A", completion="x" * 5000), played(4, "A", success=True)
    numbers = {"first": gather([one], ["A"])["A"], "second": gather([two], ["A"])["A"]}
    sources = {
        "first": Source(path=_written(tmp_path / "1.jsonl", one), arm="A"),
        "second": Source(path=_written(tmp_path / "2.jsonl", two), arm="A"),
    }
    data = episode_data(numbers, sources, {"first": "NO_HISTORY", "second": "WINDOW(2)"})
    assert [arm["name"] for arm in data["arms"]] == ["first", "second"]
    (seed,) = data["seeds"]
    assert (seed["kind"], seed["seed"]) == ("flip", 4)
    assert [episode["won"] for episode in seed["played"]] == [False, True]
    said = seed["played"][0]["turns"][0]["c"]
    assert said == "x" * 1500 + " … (3,500 characters more)"
    assert orjson.dumps(data)


def test_an_episode_that_was_lost_is_shown_as_such(tmp_path: Path) -> None:
    broken = replace(lost(1), failure_message="HTTP 500")
    numbers = gather([broken], ["A"])
    path = _written(tmp_path / "t.jsonl", broken)
    data = episode_data(numbers, {"A": Source(path=path, arm="A")}, {"A": "s"})
    (episode,) = data["seeds"][0]["played"]
    assert (episode["scored"], episode["why"]) == (False, "HTTP 500")


def test_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [played(seed, completion="y" * 1000) for seed in range(30)]
    path = _written(tmp_path / "t.jsonl", *made)
    monkeypatch.setattr(episodes, "MOST_BYTES", 20_000)
    data = episode_data(gather(made, ["A"]), {"A": Source(path=path, arm="A")}, {"A": "s"})
    assert 5 <= len(data["seeds"]) < 30
    assert len(orjson.dumps(data)) < 22_000
    assert data["counts"] == {"flip": 0, "error": 0, "alike": 30}


def test_long_episodes_are_cut(tmp_path: Path) -> None:
    long = played(0, outcomes=[Outcome.OK] * 300)
    path = _written(tmp_path / "t.jsonl", long)
    data = episode_data(gather([long], ["A"]), {"A": Source(path=path, arm="A")}, {"A": "s"})
    (episode,) = data["seeds"][0]["played"]
    assert (len(episode["turns"]), episode["n"]) == (80, 300)


def test_reasoning_is_not_said_twice(tmp_path: Path) -> None:
    thought = played(0, completion="<think>hm</think>\n<action>go</action>", reasoning="hm")
    path = _written(tmp_path / "t.jsonl", thought)
    data = episode_data(gather([thought], ["A"]), {"A": Source(path=path, arm="A")}, {"A": "s"})
    turn = data["seeds"][0]["played"][0]["turns"][0]
    assert (turn["c"], turn["r"]) == ("<action>go</action>", "hm")
