import random
from pathlib import Path
from statistics import fmean

import pytest

import envs
from envs.baselines import (
    MEMORY_SETTINGS,
    Remembering,
    Row,
    baseline_table,
    cycle,
    main,
    memory_table,
    memoryless,
    more_table,
    wilson,
)
from envs.games.key_door import STEPS, KeyDoor
from envs.playing import play

README = Path(envs.__file__).with_name("README.md")

Rows = dict[tuple[str, str], Row]


@pytest.fixture(scope="module")
def memory_rows() -> Rows:
    return {(row.setting.partition(":")[0], row.policy): row for row in memory_table(3000)}


@pytest.fixture(scope="module")
def baseline_rows() -> Rows:
    return {(row.setting, row.policy): row for row in baseline_table(3000)}


@pytest.fixture(scope="module")
def more_rows() -> Rows:
    return {(row.setting, row.policy): row for row in more_table(3000)}


@pytest.mark.parametrize("size", range(2, 10))
def test_the_cycle_goes_through_every_room_but_at_most_one(size: int) -> None:
    moves = cycle(size)
    assert len(moves) >= size * size - size % 2
    place, seen = (0, 0), set()
    while place not in seen:
        seen.add(place)
        down, right = STEPS[moves[place]]
        place = (place[0] + down, place[1] + right)
    assert place == (0, 0)
    assert len(seen) == size * size - size % 2
    assert set(moves) == {(row, column) for row in range(size) for column in range(size)}


def test_anchor_default_key_door_needs_no_memory() -> None:
    env = KeyDoor()
    policy = memoryless(random.Random(0))
    played = [play(env, seed, policy) for seed in range(3000)]
    assert all(one.success for one in played)
    assert abs(fmean(one.turns for one in played) - 17.9) < 0.5
    assert max(one.turns for one in played) <= 34


@pytest.mark.parametrize("setting", ["memory, 4x4", "memory, 5x5"])
def test_a_setting_in_which_memory_matters(memory_rows: Rows, setting: str) -> None:
    assert memory_rows[setting, "memoryless"].interval[1] < 0.22
    assert memory_rows[setting, "remembering"].interval[0] > 0.95


@pytest.mark.parametrize("setting", ["default", "odd size", "tight budget", "hidden coordinates"])
def test_settings_that_a_memoryless_policy_can_play(memory_rows: Rows, setting: str) -> None:
    assert memory_rows[setting, "memoryless"].interval[0] > 0.6
    assert memory_rows[setting, "remembering"].interval[0] > 0.95


def test_with_a_memory_every_grid_is_solved_given_time() -> None:
    for size in range(2, 8):
        for show_position, show_moves in ((True, True), (False, True), (False, False)):
            env = KeyDoor(
                size=size,
                max_turns=3 * size * size + 10,
                show_position=show_position,
                show_moves=show_moves,
            )
            assert all(play(env, seed, Remembering()).success for seed in range(50))


def test_baselines_stand_where_they_must(baseline_rows: Rows) -> None:
    assert baseline_rows["key_door, 35 turns", "oracle"].successes == 3000
    assert baseline_rows["tic_tac_toe, minimax", "oracle"].mean_return == 0.0
    for opponent in ("random", "noisy"):
        best = baseline_rows[f"tic_tac_toe, {opponent}", "oracle"]
        assert best.mean_return > baseline_rows[f"tic_tac_toe, {opponent}", "perfect"].mean_return


def test_memory_tells_in_wordle(more_rows: Rows) -> None:
    assert more_rows["wordle", "memoryless"].interval[1] < 0.75
    assert more_rows["wordle", "remembering"].interval[0] > 0.95
    for name in ("wordle", "gsm8k", "function_calling", "tool_test"):
        assert more_rows[name, "oracle"].successes == 3000
        assert more_rows[name, "oracle"].mean_return == 1.0


def test_the_readme_shows_what_is_measured(
    baseline_rows: Rows, more_rows: Rows, memory_rows: Rows
) -> None:
    readme = README.read_text().splitlines()
    for row in [*baseline_rows.values(), *more_rows.values(), *memory_rows.values()]:
        assert str(row) in readme


def test_the_readme_shows_the_recipe() -> None:
    recipe = Path(__file__).with_name("their_env.py").read_text()
    assert f"```python\n{recipe}```" in README.read_text()


def test_main_prints_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("| setting | policy | success [95 %] | return | turns |") == 3
    assert len([line for line in lines if line.startswith("| key_door")]) == 4
    assert len([line for line in lines if "| remembering |" in line]) == 1 + len(MEMORY_SETTINGS)


def test_wilson() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    with pytest.raises(ValueError, match="n must be positive"):
        wilson(0, 0)
