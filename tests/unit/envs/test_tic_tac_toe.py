import json
import random
from collections import Counter
from functools import cache
from typing import Any

import pytest

from envs import NO_ACTION, EpisodeOver
from envs.baselines import perfect, wilson
from envs.games.tic_tac_toe import OPPONENTS, TicTacToe
from envs.playing import Policy, oracle_policy, play, random_policy

SYSTEM_PROMPT = """\
You play noughts and crosses and you are X; the other side is O. X opens. Whoever first has three \
marks in one row, column or diagonal wins.
The board's cells are numbered 1 to 9, row by row from the top left; a free cell shows its number. \
Only free cells may be played; anything else wastes a turn, and after 10 turns without a result \
you have lost.
Answer with one free cell's number, written like this: <move>5</move>"""

QUESTION = "\nYou are X. Which cell do you play?"

GOLDEN: list[tuple[str, str, float, dict[str, Any]]] = [
    ("5", f"1 2 3\n4 X O\n7 8 9{QUESTION}", 0.0, {"illegal_moves": 0}),
    (
        "5",
        f"That was no legal move: cell 5 is taken.\n1 2 3\n4 X O\n7 8 9{QUESTION}",
        0.0,
        {
            "illegal": True,
            "error": "cell 5 is taken",
            "event": "illegal_move",
            "illegal_moves": 1,
        },
    ),
    (
        "10",
        f"That was no legal move: '10' is not a cell from 1 to 9.\n1 2 3\n4 X O\n7 8 9{QUESTION}",
        0.0,
        {
            "illegal": True,
            "error": "'10' is not a cell from 1 to 9",
            "event": "illegal_move",
            "illegal_moves": 2,
        },
    ),
    ("1", f"X 2 3\nO X O\n7 8 9{QUESTION}", 0.0, {"illegal_moves": 2}),
    ("3", f"X 2 X\nO X O\n7 O 9{QUESTION}", 0.0, {"illegal_moves": 2}),
    ("9", "X 2 X\nO X O\n7 O X\nYou win.", 1.0, {"illegal_moves": 2, "event": "win"}),
]

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


def start(seed: int = 3, **params: Any) -> TicTacToe:
    env = TicTacToe(**params)
    env.reset(seed=seed)
    return env


def outcomes(env: TicTacToe, policy: Policy, seeds: int) -> Counter[str]:
    counted: Counter[str] = Counter()
    for seed in range(seeds):
        play(env, seed, policy)
        counted[env.state()["outcome"] or "cut"] += 1
    return counted


def test_golden_episode() -> None:
    env = TicTacToe()
    assert env.reset(seed=3) == (f"1 2 3\n4 5 6\n7 8 9{QUESTION}", {})
    assert env.system_prompt == SYSTEM_PROMPT
    for action, observation, reward, info in GOLDEN:
        assert env.step(action) == (observation, reward, "win" in info.values(), False, info)
    assert env.success
    with pytest.raises(EpisodeOver):
        env.step("2")
    with pytest.raises(EpisodeOver):
        env.oracle()


def test_an_opponent_with_x_opens_and_the_prompt_says_so() -> None:
    env = TicTacToe()
    observation, _ = env.reset(seed=0)
    assert observation == "1 2 3\n4 5 6\nX 8 9\nYou are O. Which cell do you play?"
    assert "you are O; the other side is X" in env.system_prompt


def test_the_coin_is_fair() -> None:
    crosses = sum(start(seed).state()["mark"] == "X" for seed in range(2000))
    low, high = wilson(crosses, 2000)
    assert low < 0.5 < high


@pytest.mark.parametrize("turns", [10, 50])
@pytest.mark.parametrize("opponent", OPPONENTS)
def test_repeating_an_occupied_cell_gains_nothing(opponent: str, turns: int) -> None:
    """The 15.0-return exploit: a legal first move, then the same cell again and again."""
    for seed in range(50):
        env = TicTacToe(opponent=opponent, max_turns=turns)
        result = play(env, seed, lambda env, _: "5")
        assert not result.success
        assert result.return_ <= 0.0
        assert env.state()["illegal_moves"] >= turns - 1


@pytest.mark.parametrize("garbage", [NO_ACTION, "0", "10", "5.0", "five", "１", "-1", " 5"])
def test_an_illegal_move_costs_the_turn_and_leaves_the_board(garbage: str) -> None:
    env = start()
    before = env.state()
    _, reward, terminated, truncated, info = env.step(garbage)
    assert (reward, terminated, truncated, info["illegal"]) == (0.0, False, False, True)
    assert env.state() == {**before, "turn": 1, "illegal_moves": 1}


def test_stalling_costs_what_losing_costs() -> None:
    env = start(max_turns=5)
    results = [env.step(NO_ACTION) for _ in range(5)]
    assert [result[1:4] for result in results[:-1]] == [(0.0, False, False)] * 4
    assert results[-1][1:4] == (-1.0, False, True)
    assert results[-1][4]["event"] == "max_turns_reached"
    assert not env.success


def test_a_win_on_the_last_turn_is_a_win() -> None:
    env = start(max_turns=5)
    for action in ("5", "5", "1", "3"):
        env.step(action)
    assert env.step("9")[1:4] == (1.0, True, False)


def test_a_draw_is_no_success() -> None:
    env = TicTacToe(opponent="minimax")
    for seed in range(20):
        result = play(env, seed, oracle_policy)
        assert (result.return_, result.success) == (0.0, False)
        assert env.state()["outcome"] == "draw"


def test_the_opponents_luck_depends_on_the_seed_alone() -> None:
    first, second = start(7), start(7)
    random.seed(1)
    played = []
    while first.legal_actions() and not first.success and first.state()["outcome"] is None:
        action = first.legal_actions()[0]
        played.append(first.step(action))
        assert second.step(action) == played[-1]


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"opponent": "human"}, "opponent must be one of random, minimax, noisy"),
        ({"opponent": "noisy", "epsilon": 1.5}, "epsilon must be between 0 and 1"),
        ({"opponent": "random", "epsilon": 0.5}, "epsilon is for opponent='noisy' only"),
        ({"max_turns": 4}, "max_turns must be at least 5"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TicTacToe(**params)


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="takes no options"):
        TicTacToe().reset(seed=0, options={"mark": "X"})


def test_noise_goes_from_perfect_to_random() -> None:
    random_like = TicTacToe(opponent="noisy", epsilon=1.0)
    perfect_like = TicTacToe(opponent="noisy", epsilon=0.0)
    for seed in range(100):
        for noisy, pure in ((random_like, "random"), (perfect_like, "minimax")):
            policy = random_policy(random.Random(seed))
            again = random_policy(random.Random(seed))
            assert play(noisy, seed, policy) == play(TicTacToe(opponent=pure), seed, again)


def test_notes_tell_wins_and_threats() -> None:
    env = start()
    env.load({**env.state(), "board": "XX.OO...."})
    assert env.optimal_scratchpad() == (
        "You are X. Cells that win at once: 3. Cells the other side would win with: 6."
    )


def test_render_shows_the_whole_state() -> None:
    env = start(opponent="minimax")
    assert env.render() == (
        "1 2 3\n4 5 6\n7 8 9\nplayer X, opponent minimax, turn 0 of 10, illegal moves 0, running"
    )


def test_tool_form_names_every_cell() -> None:
    (tool,) = start().tools()
    cells = tool["function"]["parameters"]["properties"]["action"]["enum"]
    assert cells == [str(cell) for cell in range(1, 10)]


def winner(board: str) -> str | None:
    return next(
        (board[a] for a, b, c in LINES if board[a] != "." and board[a] == board[b] == board[c]),
        None,
    )


@cache
def worth(board: str, mark: str, to_move: str, depth: bool) -> float:
    """Plain minimax on absolute marks, from `mark`'s side; with `depth`, quick wins count more."""
    free = [cell for cell in range(9) if board[cell] == "."]
    won = winner(board)
    if won is not None:
        size = 1 + len(free) * depth
        return size if won == mark else -size
    if not free:
        return 0.0
    other = "O" if to_move == "X" else "X"
    children = [worth(put(board, cell, to_move), mark, other, depth) for cell in free]
    return max(children) if to_move == mark else min(children)


@cache
def expected(board: str, mark: str, noise: float) -> float:
    """Plain expectimax on absolute marks, `mark` to move, against the opponent of that noise."""
    return max(expected_after(board, cell, mark, noise) for cell in range(9) if board[cell] == ".")


def expected_after(board: str, cell: int, mark: str, noise: float) -> float:
    board = put(board, cell, mark)
    if winner(board):
        return 1.0
    free = [reply for reply in range(9) if board[reply] == "."]
    if not free:
        return 0.0
    other = "O" if mark == "X" else "X"
    values = {reply: worth(put(board, reply, other), other, mark, True) for reply in free}
    best = [reply for reply in free if values[reply] == max(values.values())]
    total = 0.0
    for reply in free:
        share = noise / len(free) + (1 - noise) / len(best) * (reply in best)
        after = put(board, reply, other)
        if winner(after):
            total -= share
        elif "." in after:
            total += share * expected(after, mark, noise)
    return total


def put(board: str, cell: int, mark: str) -> str:
    return board[:cell] + mark + board[cell + 1 :]


@pytest.mark.parametrize("mark", ["X", "O"])
@pytest.mark.parametrize(
    ("params", "noise"),
    [
        ({"opponent": "random"}, 1.0),
        ({"opponent": "minimax"}, 0.0),
        ({"opponent": "noisy", "epsilon": 0.3}, 0.3),
    ],
)
def test_the_oracle_is_the_expectimax_against_the_actual_opponent(
    params: dict[str, Any], noise: float, mark: str
) -> None:
    """Against a second implementation; both marks in one process, so no cache mixes them up."""
    env = start(**params)
    rng = random.Random(0)
    checked = 0
    while checked < 150:
        marks = rng.choice([0, 1, 2, 3]) * 2 + (mark == "O")
        board = "." * 9
        for turn, cell in enumerate(rng.sample(range(9), marks)):
            board = put(board, cell, "XO"[turn % 2])
        if winner(board):
            continue
        env.load({**env.state(), "board": board, "mark": mark})
        chosen = expected_after(board, int(env.oracle()) - 1, mark, noise)
        assert chosen == pytest.approx(expected(board, mark, noise), abs=1e-12)
        checked += 1


def test_the_oracle_sees_that_turns_run_out() -> None:
    env = start()
    env.load({**env.state(), "board": "XX..O.O..", "turn": 9})
    assert env.oracle() == "3"


def test_the_oracle_does_not_know_the_luck() -> None:
    env = start(0)
    state = json.loads(json.dumps(env.state()))
    told = env.oracle()
    for luck in (0.0, 0.3, 0.6, 0.999):
        env.load({**state, "luck": [luck] * 5})
        assert env.oracle() == told


def test_anchor_random_player() -> None:
    counted = outcomes(TicTacToe(), random_policy(random.Random(0)), 3000)
    for outcome, anchor in (("win", 0.442), ("draw", 0.123), ("loss", 0.436)):
        low, high = wilson(counted[outcome], 3000)
        assert low < anchor < high
    env, policy = TicTacToe(), random_policy(random.Random(1))
    turns = [play(env, seed, policy).turns for seed in range(3000)]
    assert abs(sum(turns) / 3000 - 3.81) < 0.06
    assert max(turns) == 5


def test_anchor_expectimax_player() -> None:
    counted = outcomes(TicTacToe(), oracle_policy, 3000)
    # 96.1 % was itself measured on 3,000 episodes or fewer; exactly it is 96.35 %.
    assert abs(counted["win"] / 3000 - 0.961) < 0.010
    assert counted["loss"] / 3000 < 0.010
    exact = [expected("." * 9, "X", 1.0)]
    exact += [sum(expected(put("." * 9, cell, "X"), "O", 1.0) for cell in range(9)) / 9]
    assert sum(exact) / 2 == pytest.approx(0.95983, abs=1e-5)


def test_anchor_perfect_player_never_loses_and_wins_less() -> None:
    counted = outcomes(TicTacToe(), perfect, 3000)
    assert counted["loss"] == 0
    assert 0.88 < counted["win"] / 3000 < 0.92


@pytest.mark.parametrize("name", ["random", "perfect", "oracle"])
def test_nobody_beats_the_minimax_opponent(name: str) -> None:
    players = {
        "random": random_policy(random.Random(0)),
        "perfect": perfect,
        "oracle": oracle_policy,
    }
    counted = outcomes(TicTacToe(opponent="minimax"), players[name], 500)
    assert counted["win"] == 0
    if name != "random":
        assert counted == Counter(draw=500)
