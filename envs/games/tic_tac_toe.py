"""tic_tac_toe: noughts and crosses against a seeded opponent whose habits the oracle knows.

Lives here: the game, the opponents, and the exact value of every board against each of them. A
board is a string of nine cells; inside the search it is relative to who plays (`_ME`, `_THEM`),
so that no value depends on which of X and O the player happened to draw.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any, Self

from envs.base import EpisodeOver, Info, StepResult, TextEnv, choice_tool

OPPONENTS = ("random", "minimax", "noisy")
_NOISY_EPSILON = 0.25

_CELLS = tuple("123456789")
_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
_FREE, _ME, _THEM = ".", "m", "t"
_REWARDS = {"win": 1.0, "draw": 0.0, "loss": -1.0}
_LAST_WORDS = {"win": "You win.", "draw": "Nobody wins.", "loss": "You lose."}
_CUT_OFF_REWARD = -1.0


class TicTacToe(TextEnv):
    """Three in a row wins +1.0, a draw 0, a loss -1.0. X opens; a seeded coin deals the marks.

    An illegal answer costs the turn, earns 0 and leaves the board alone. At `max_turns` (illegal
    turns included, at least 5, which is all a legal game can need) the episode is truncated at
    -1.0, the price of a loss: were it cheaper, stalling would be the way out of a lost game.

    `opponent`: "random" plays uniformly, "minimax" perfectly (equally good moves uniformly),
    "noisy" uniformly with probability `epsilon` (0 to 1, by default 0.25) and else perfectly.
    """

    id = "tic_tac_toe"
    action_tag = "move"
    solvable = False

    def __init__(
        self, *, opponent: str = "random", epsilon: float | None = None, max_turns: int = 10
    ) -> None:
        if opponent not in OPPONENTS:
            raise ValueError(f"opponent must be one of {', '.join(OPPONENTS)}, got {opponent!r}")
        if epsilon is None and opponent == "noisy":
            epsilon = _NOISY_EPSILON
        if epsilon is not None and opponent != "noisy":
            raise ValueError(f"epsilon is for opponent='noisy' only, not for {opponent!r}")
        if epsilon is not None and not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon must be between 0 and 1, got {epsilon}")
        if max_turns < 5:
            raise ValueError(f"max_turns must be at least 5 (a whole game), got {max_turns}")
        self.opponent = opponent
        self.epsilon = epsilon
        self.max_turns = max_turns
        self._noise = {"random": 1.0, "minimax": 0.0}.get(opponent, epsilon or 0.0)
        self._board = _FREE * 9
        self._mark, self._other = "X", "O"
        self._luck: tuple[float, ...] = ()
        self._turn = self._illegal = 0
        self._outcome: str | None = None
        self._over = True

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"opponent": self.opponent, "epsilon": self.epsilon, "max_turns": self.max_turns}

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Clear the board and deal the marks; if the opponent got X, it opens.

        All of the episode's chance is drawn here, one number for each reply of the opponent, so
        that equal seeds mean an equally lucky opponent whatever is played.

        Raises:
            ValueError: `options` are given: this env has none.

        """
        if options:
            raise ValueError(f"tic_tac_toe takes no options, got {dict(options)}")
        rng = random.Random(seed)
        starts = rng.random() < 0.5
        self._mark, self._other = ("X", "O") if starts else ("O", "X")
        self._luck = tuple(rng.random() for _ in range(5))
        self._board = _FREE * 9
        self._turn = self._illegal = 0
        self._outcome = None
        self._over = False
        if not starts:
            self._opponent_replies()
        return self._observe(""), {}

    def step(self, action: str) -> StepResult:
        """Play a cell, and let the opponent reply; see `TextEnv.step`.

        `info["event"]`: win, loss, draw, illegal_move, max_turns_reached.
        `info["illegal_moves"]`: how many there were so far.
        """
        if self._over:
            raise EpisodeOver("the episode is over or was never reset: call reset first")
        self._turn += 1
        feedback = ""
        info: Info = {}
        if action in self.legal_actions():
            self._board = _put(self._board, int(action) - 1, self._mark)
            self._outcome = self._verdict() or self._opponent_replies()
        else:
            self._illegal += 1
            reason = _why_illegal(action)
            feedback = f"That was no legal move: {reason}.\n"
            info = {"illegal": True, "error": reason, "event": "illegal_move"}
        info["illegal_moves"] = self._illegal
        if self._outcome is not None:
            self._over = True
            info["event"] = self._outcome
            last = f"{self._grid()}\n{_LAST_WORDS[self._outcome]}"
            return last, _REWARDS[self._outcome], True, False, info
        if self._turn >= self.max_turns:
            self._over = True
            info["event"] = "max_turns_reached"
            return self._observe(feedback), _CUT_OFF_REWARD, False, True, info
        return self._observe(feedback), 0.0, False, False, info

    @property
    def success(self) -> bool:
        """Whether the player has three in a row; a draw is no success."""
        return self._outcome == "win"

    def legal_actions(self) -> tuple[str, ...]:
        """Return the free cells."""
        board = self._board
        return tuple(cell for cell, mark in zip(_CELLS, board, strict=True) if mark == _FREE)

    def all_actions(self) -> tuple[str, ...]:
        """Return the nine cells."""
        return _CELLS

    def oracle(self) -> str:
        """Return the move of the highest expected reward against this very opponent.

        It knows the opponent's habits, not its luck. Of equally good moves the first.

        Raises:
            EpisodeOver: before `reset` or after the end.

        """
        if self._over:
            raise EpisodeOver("the episode is over or was never reset: there is no next move")
        left = min(self.max_turns - self._turn, 5)
        return _CELLS[_best_move(self._relative(), left, self._noise)]

    def state(self) -> dict[str, Any]:
        """Return the episode, the opponent's coming luck included."""
        return {
            "board": self._board,
            "mark": self._mark,
            "turn": self._turn,
            "illegal_moves": self._illegal,
            "outcome": self._outcome,
            "over": self._over,
            "luck": list(self._luck),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._board = state["board"]
        self._mark = state["mark"]
        self._other = "O" if self._mark == "X" else "X"
        self._turn, self._illegal = state["turn"], state["illegal_moves"]
        self._outcome, self._over = state["outcome"], state["over"]
        self._luck = tuple(state["luck"])

    def clone(self) -> Self:
        """Return an independent copy: every field is immutable."""
        return copy.copy(self)

    @property
    def system_prompt(self) -> str:
        """The rules, the player's mark and the answer's format."""
        return (
            f"You play noughts and crosses and you are {self._mark}; the other side is "
            f"{self._other}. X opens. Whoever first has three marks in one row, column or diagonal "
            "wins.\n"
            "The board's cells are numbered 1 to 9, row by row from the top left; a free cell "
            "shows its number. Only free cells may be played; anything else wastes a turn, and "
            f"after {self.max_turns} turns without a result you have lost.\n"
            "Answer with one free cell's number, written like this: <move>5</move>"
        )

    @property
    def scratchpad_prompt(self) -> str:
        """What is worth noting here: little, since the board shows everything."""
        return (
            "You do not see earlier turns. Before your move, write your notes between "
            "<scratchpad> and </scratchpad>; they replace your old notes. The board always shows "
            "the whole game: note only your plan and what the other side threatens."
        )

    def optimal_scratchpad(self) -> str:
        """Return the winning and the threatened cells of this moment."""
        wins = _completing(self._board, self._mark)
        threats = _completing(self._board, self._other)
        return (
            f"You are {self._mark}. Cells that win at once: {', '.join(wins) or 'none'}. "
            f"Cells the other side would win with: {', '.join(threats) or 'none'}."
        )

    def render(self) -> str:
        """Draw the board and what is not on it."""
        status = self._outcome or ("over" if self._over else "running")
        return (
            f"{self._grid()}\nplayer {self._mark}, opponent {self.opponent}, turn {self._turn} of "
            f"{self.max_turns}, illegal moves {self._illegal}, {status}"
        )

    def tools(self) -> list[dict[str, Any]]:
        """Return one tool whose argument is the cell."""
        return [choice_tool("move", "Put your mark into a free cell.", _CELLS)]

    def _opponent_replies(self) -> str | None:
        """Let the opponent play; return the outcome if that ends the game."""
        board = _swap(self._relative())
        cells, weights = _habits(board, self._noise)
        reply = (9 - board.count(_FREE)) // 2
        cell = _draw(cells, weights, self._luck[reply])
        self._board = _put(self._board, cell, self._other)
        return self._verdict()

    def _verdict(self) -> str | None:
        """Return win, loss, draw, or None while the game goes on."""
        if _has_line(self._board, self._mark):
            return "win"
        if _has_line(self._board, self._other):
            return "loss"
        return None if _FREE in self._board else "draw"

    def _relative(self) -> str:
        """Return the board as the player sees it: his marks `_ME`, the others `_THEM`."""
        return self._board.translate({ord(self._mark): _ME, ord(self._other): _THEM})

    def _grid(self) -> str:
        cells = [
            number if mark == _FREE else mark
            for number, mark in zip(_CELLS, self._board, strict=True)
        ]
        return "\n".join(" ".join(cells[row : row + 3]) for row in (0, 3, 6))

    def _observe(self, feedback: str) -> str:
        return f"{feedback}{self._grid()}\nYou are {self._mark}. Which cell do you play?"


def _put(board: str, cell: int, mark: str) -> str:
    return f"{board[:cell]}{mark}{board[cell + 1 :]}"


def _free(board: str) -> list[int]:
    return [cell for cell, mark in enumerate(board) if mark == _FREE]


def _has_line(board: str, mark: str) -> bool:
    return any(board[a] == board[b] == board[c] == mark for a, b, c in _LINES)


def _completing(board: str, mark: str) -> list[str]:
    """Return the free cells that would give `mark` three in a row."""
    return [_CELLS[cell] for cell in _free(board) if _has_line(_put(board, cell, mark), mark)]


def _swap(board: str) -> str:
    """Return the board as the other side sees it."""
    return board.translate({ord(_ME): _THEM, ord(_THEM): _ME})


def _why_illegal(action: str) -> str:
    if not action:
        return "the answer names no cell"
    if action in _CELLS:
        return f"cell {action} is taken"
    shown = action if len(action) <= 40 else f"{action[:40]}..."
    return f"{shown!r} is not a cell from 1 to 9"


@lru_cache(maxsize=8192)
def _minimax(board: str) -> int:
    """Return what `_ME`, to play, can force: a win is worth more the sooner it comes."""
    if _has_line(board, _THEM):
        return -1 - board.count(_FREE)
    if _FREE not in board:
        return 0
    return max(-_minimax(_swap(_put(board, cell, _ME))) for cell in _free(board))


@lru_cache(maxsize=65536)
def _habits(board: str, noise: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the cells an opponent that sees `board` as `_ME` may play, and their probabilities.

    Both the opponent's play and the oracle's view of it come from here. `noise`: the probability
    of a uniform move; else one of the perfect moves, uniformly.
    """
    free = _free(board)
    values = [-_minimax(_swap(_put(board, cell, _ME))) for cell in free]
    best = max(values)
    share = (1.0 - noise) / values.count(best)
    return tuple(free), tuple(noise / len(free) + share * (value == best) for value in values)


def _draw(cells: tuple[int, ...], probabilities: tuple[float, ...], luck: float) -> int:
    """Return the cell in whose share of [0, 1) the number `luck` falls."""
    possible = [(c, p) for c, p in zip(cells, probabilities, strict=True) if p > 0.0]
    bounds = accumulate(p for _, p in possible)
    return next(
        (c for (c, _), bound in zip(possible, bounds, strict=True) if luck < bound), possible[-1][0]
    )


@lru_cache(maxsize=65536)
def _best_move(board: str, left: int, noise: float) -> int:
    return max(_free(board), key=lambda cell: _move_value(board, cell, left, noise))


@lru_cache(maxsize=65536)
def _value(board: str, left: int, noise: float) -> float:
    """Return the expected reward of `_ME`, to play with `left` turns, against that opponent."""
    if left == 0:
        return _CUT_OFF_REWARD
    return max(_move_value(board, cell, left, noise) for cell in _free(board))


def _move_value(board: str, cell: int, left: int, noise: float) -> float:
    """Return the expected reward of playing `cell` now and perfectly from then on."""
    played = _put(board, cell, _ME)
    if _has_line(played, _ME):
        return _REWARDS["win"]
    if _FREE not in played:
        return _REWARDS["draw"]
    cells, probabilities = _habits(_swap(played), noise)
    return sum(
        probability * _value_after_reply(_put(played, reply, _THEM), left, noise)
        for reply, probability in zip(cells, probabilities, strict=True)
        if probability > 0.0
    )


def _value_after_reply(board: str, left: int, noise: float) -> float:
    if _has_line(board, _THEM):
        return _REWARDS["loss"]
    if _FREE not in board:
        return _REWARDS["draw"]
    return _value(board, min(left - 1, (board.count(_FREE) + 1) // 2), noise)
