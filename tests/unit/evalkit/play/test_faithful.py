"""Notes against what the episode had shown, on episodes whose notes are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envs import TextEnv, make
from evalkit.play.faithful import Faith, faith, faith_by_seed
from evalkit.play.strategies import parse_strategy
from evalkit.record.testing import lost, played, turn
from evalkit.record.trajectory import Trajectory, Turn

PAD = parse_strategy("SCRATCHPAD")


def oracle_with(notes: list[str] | None = None) -> tuple[Trajectory, list[int]]:
    """Play by the oracle; notes are perfect, or those given. Also how many facts each turn had."""
    env = make("key_door", size=3)
    env.reset(seed=1)
    turns: list[Turn] = []
    n_facts: list[int] = []
    over = False
    while not over:
        pad = env.optimal_scratchpad() if notes is None else notes[len(turns)]
        action = env.oracle()
        said = f"<scratchpad>{pad}</scratchpad><action>{action}</action>"
        turns.append(turn(len(turns), completion=said, action=action))
        n_facts.append(len(env.facts()))
        _, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    return replace(played(1, success=True), turns=tuple(turns)), n_facts


def found(trajectory: Trajectory) -> Faith:
    return faith(trajectory, make("key_door", size=3), PAD)


def test_perfect_notes_hold_every_fact() -> None:
    trajectory, n_facts = oracle_with()
    # the notes of the last turn are never shown to anyone
    assert found(trajectory) == Faith(right=sum(n_facts[:-1]))
    assert (found(trajectory).recall, found(trajectory).precision) == (1.0, 1.0)


def test_what_is_left_out_and_what_is_made_up_are_counted_apart() -> None:
    _, n_facts = oracle_with()
    shown, last = sum(n_facts[:-1]), len(n_facts) - 1
    trajectory, _ = oracle_with(["Empty (9, 9)."] * last + ["I have the key."])
    assert found(trajectory) == Faith(missing=shown, invented=last)
    assert (found(trajectory).recall, found(trajectory).precision) == (0.0, 0.0)


def test_notes_that_are_wrong_are_neither_missing_nor_made_up() -> None:
    _, n_facts = oracle_with()
    trajectory, _ = oracle_with(["I have the key."] + [""] * (len(n_facts) - 1))
    result = found(trajectory)
    assert result.wrong >= 1
    assert (result.invented, result.right + result.wrong + result.missing) == (
        0,
        sum(n_facts[:-1]),
    )


def test_without_a_fact_or_a_statement_there_is_no_share() -> None:
    assert (Faith().recall, Faith().precision) == (None, None)
    assert Faith(right=1, wrong=1, missing=2, invented=2).recall == pytest.approx(1 / 4)
    assert Faith(right=1, wrong=1, missing=2, invented=2).precision == pytest.approx(1 / 4)


def test_episodes_are_kept_by_seed_and_lost_ones_left_out() -> None:
    trajectory, _ = oracle_with()

    def make_env() -> TextEnv:
        return make("key_door", size=3)

    kept = faith_by_seed([trajectory, lost(2), trajectory], make_env, PAD)
    assert {seed: len(each) for seed, each in kept.items()} == {1: 2}
