"""What notes on key_door state, read from the words people and models use."""

import random

import pytest

from envs import make
from envs.games.key_door_notes import CARRIED, EMPTY, read_claims


@pytest.mark.parametrize(
    ("notes", "claims"),
    [
        ("", {}),
        ("Go up, then left.", {}),
        ("No key yet. Door at (0, 2). Empty: (0, 1), (1, 1).",
         {CARRIED: "no", "door": "(0, 2)", "(0, 1)": EMPTY, "(1, 1)": EMPTY}),
        ("I carry the key; the door is in room (3,1)", {CARRIED: "yes", "door": "(3, 1)"}),
        ("Key seen at (2, 0), door unknown", {"key": "(2, 0)"}),
        ("door (1, 1) and key (0, 3)", {"door": "(1, 1)", "key": "(0, 3)"}),
        ("My hands are empty. Visited (0,0) (0,1)",
         {CARRIED: "no", "(0, 0)": EMPTY, "(0, 1)": EMPTY}),
        ("key: picked up\ndoor: row 2, column 3", {CARRIED: "yes", "door": "(2, 3)"}),
        ("Door at (0, 0). Sorry: door at (1, 0)", {"door": "(1, 0)"}),
        ("I have not found the key", {CARRIED: "no"}),
        ("I don't have the key", {CARRIED: "no"}),
        ("You are (-1, 2) from your start. Key at (-1, 0)", {"key": "(-1, 0)"}),
        ("(1, 1): empty, (0,2): door; room (2, 2) holds the key",
         {"(1, 1)": EMPTY, "door": "(0, 2)", "key": "(2, 2)"}),
        ("No key at (1, 1), no door in (0, 1)", {}),
        ("I was at (2, 2) and the key is at (1, 2)", {"key": "(1, 2)"}),
        ("Inventory: key", {CARRIED: "yes"}),
        ("have key=no", {CARRIED: "no"}),
        ("Carrying the key: no. Nothing at (1, 2)", {CARRIED: "no", "(1, 2)": EMPTY}),
    ],
)  # fmt: skip
def test_claims(notes: str, claims: dict[str, str]) -> None:
    assert read_claims(notes) == claims


@pytest.mark.parametrize("shown", [True, False])
def test_perfect_notes_state_every_fact_and_nothing_else(shown: bool) -> None:
    env = make("key_door", size=4, show_position=shown, show_moves=shown)
    rng = random.Random(3)
    for seed in range(40):
        env.reset(seed=seed)
        over = False
        while not over:
            assert env.claims(env.optimal_scratchpad()) == env.facts()
            action = env.oracle() if rng.random() < 0.5 else rng.choice(env.legal_actions())
            _, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated


def test_facts_are_only_what_was_seen() -> None:
    env = make("key_door", size=3)
    env.load({"cell": 0, "key": 4, "door": 8, "start": 0, "turn": 0, "has_key": False,
              "success": False, "over": False, "visited": [0, 4], "walls": []})  # fmt: skip
    assert env.facts() == {CARRIED: "no", "(0, 0)": EMPTY, "key": "(1, 1)"}
    env.load({**env.state(), "has_key": True, "visited": [0, 4, 8]})
    assert env.facts() == {CARRIED: "yes", "(0, 0)": EMPTY, "door": "(2, 2)"}


def test_wordle_notes_are_words_with_marks() -> None:
    env = make("wordle")
    env.reset(seed=1)
    assert env.facts() == {}
    env.step("stone")
    env.step("choke")
    assert list(env.facts()) == ["stone", "choke"]
    assert env.claims(env.optimal_scratchpad()) == env.facts()
    assert env.claims("Stone: XXGXG, apple - YYXXX; house is next") == {
        "stone": "XXGXG",
        "apple": "YYXXX",
    }
