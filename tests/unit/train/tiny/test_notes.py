from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.games.key_door import ACTIONS, KeyDoor
from train.tiny.notes import Notes

PLACES = st.tuples(st.integers(0, 8), st.integers(0, 8))


def hidden(size: int, max_turns: int = 60) -> KeyDoor:
    return KeyDoor(size=size, max_turns=max_turns, show_position=False, show_moves=False)


@given(
    st.builds(
        Notes,
        row=st.none() | st.integers(0, 8),
        column=st.none() | st.integers(0, 8),
        door=st.none() | PLACES,
        last=st.sampled_from(ACTIONS),
    )
)
def test_what_is_written_is_read_again(notes: Notes) -> None:
    assert Notes.read(str(notes)) == notes


@pytest.mark.parametrize("text", ["", "Row 1.", "Row 1, column 2. Door at row 0. Last action up."])
def test_of_other_texts_nothing_is_known(text: str) -> None:
    assert Notes.read(text) == Notes()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_notes_are_true_whatever_is_done(size: int) -> None:
    known = 0
    for seed in range(40):
        env, rng, notes = hidden(size), random.Random(seed), Notes()
        observation, _ = env.reset(seed=seed)
        for _ in range(50):
            notes = notes.seen(observation)
            state = env.state()
            row, column = divmod(state["cell"], size)
            assert notes.row in {None, row}
            assert notes.column in {None, column}
            assert notes.door in {None, divmod(state["door"], size)}
            known += notes.door is not None
            action = rng.choice(ACTIONS)
            notes = Notes.read(str(Notes(**{**fields(notes), "last": action})))
            observation, _, terminated, _, _ = env.step(action)
            if terminated:
                break
    assert known > 40


def fields(notes: Notes) -> dict[str, Any]:
    return {"row": notes.row, "column": notes.column, "door": notes.door}


def win_rate(*, remembers: bool, seeds: range = range(200)) -> float:
    won = 0
    for seed in seeds:
        env, pad, over = hidden(3, max_turns=18), "", False
        observation, _ = env.reset(seed=seed)
        while not over:
            notes = Notes.read(pad).seen(observation)
            action = notes.action(observation)
            pad = str(Notes(**{**fields(notes), "last": action})) if remembers else ""
            observation, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        won += env.success
    return won / len(seeds)


def test_who_plays_by_the_notes_wins_and_who_loses_them_does_not() -> None:
    assert win_rate(remembers=True) > 0.95
    assert win_rate(remembers=False) < 0.1


def test_a_false_note_of_the_door_is_corrected() -> None:
    env = hidden(3)
    observation, _ = env.reset(seed=0)
    row, column = divmod(env.state()["cell"], 3)
    notes = Notes(row=row, column=column, door=(row, column), last="interact")
    assert notes.seen(observation).door is None


def test_an_observation_of_another_game_is_refused() -> None:
    with pytest.raises(AssertionError, match="no key_door observation"):
        Notes(row=0, column=0, last="up").seen("A board.")
