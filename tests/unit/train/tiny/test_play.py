from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch

from envs.baselines import cycle
from train.tiny.model import make_model
from train.tiny.play import score, success_rate
from train.tiny.recipes import recipe
from train.tiny.tokenizer import END, Renderer, train_tokenizer

ROUND = dataclasses.replace(
    recipe("key_door"), strategy="NO_HISTORY", args={"size": 2, "max_turns": 12}
)
TOKENIZER = train_tokenizer(ROUND, 0)


@dataclasses.dataclass
class Out:
    """What a model returns."""

    logits: torch.Tensor
    past_key_values: object = None


class Walker:
    """Answers as a model does: walks round the grid and uses what it finds."""

    def __init__(self, after: str = END) -> None:
        self.after = after
        self.calls = 0

    def __call__(self, *, input_ids: torch.Tensor, **_: Any) -> Out:
        self.calls += 1
        logits = torch.full((len(input_ids), 1, len(TOKENIZER)), -1e9)
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, 0, self.next_token(ids)] = 0.0
        return Out(logits=logits)

    def next_token(self, ids: list[int]) -> int:
        if len(ids) == 1:
            return int(TOKENIZER.convert_tokens_to_ids(self.after))
        seen = TOKENIZER.decode(ids).rpartition("user\n")[2]
        place = re.search(r"You are at \((\d), (\d)\)", seen)
        assert place is not None
        usable = "key lies" in seen or ("door is in" in seen and "carry" in seen)
        move = cycle(2)[int(place[1]), int(place[2])]
        (token,) = TOKENIZER.encode(f"<action>{'interact' if usable else move}</action>")
        return int(token)


def test_a_policy_that_always_gets_there_has_success_1() -> None:
    for greedy in (False, True):
        got = score(Walker(), TOKENIZER, ROUND, range(80), greedy=greedy)
        assert got.success_rate == 1.0
        assert got.reply_tokens == 2
        assert 4 <= got.turns <= 12
        assert got.longest <= 100


def test_a_policy_that_runs_out_of_turns_has_success_0() -> None:
    hurried = dataclasses.replace(ROUND, args={"size": 2, "max_turns": 2})
    assert success_rate(Walker(), TOKENIZER, hurried, range(8)) == 0.0


def test_a_reply_without_end_is_cut() -> None:
    babbler = Walker(after="a")
    got = score(babbler, TOKENIZER, ROUND, [0])
    assert got.reply_tokens == 64
    assert got.success_rate == 1.0  # the first action of a reply counts


def test_lockstep_plays_each_episode_as_if_alone() -> None:
    chosen = dataclasses.replace(recipe("key_door"), args={"size": 3, "max_turns": 2})
    tokenizer = train_tokenizer(chosen, 0)
    model = make_model(tokenizer, 1).eval()
    alone = [score(model, tokenizer, chosen, [seed], greedy=True) for seed in range(2)]
    together = score(model, tokenizer, chosen, range(2), greedy=True)
    assert together.prompt_tokens == sum(one.prompt_tokens for one in alone) / 2
    assert together.reply_tokens == sum(one.reply_tokens for one in alone) / 2


def test_sampling_follows_the_model_and_repeats() -> None:
    chosen = dataclasses.replace(recipe("key_door"), args={"size": 3, "max_turns": 1})
    tokenizer = train_tokenizer(chosen, 0)
    model = make_model(tokenizer, 1).eval()
    scores = [score(model, tokenizer, chosen, range(6)) for _ in range(2)]
    assert scores[0] == scores[1]
    assert Renderer(tokenizer).reply("")[-1] == tokenizer.eos_token_id


class Counter(Walker):
    """Notes how many turns it remembers to have played, and walks."""

    def __init__(self) -> None:
        """Have counted nothing."""
        super().__init__()
        self.counts: list[int] = []
        self.queue: list[int] = []

    def next_token(self, ids: list[int]) -> int:
        """Write one more than the notes say, then an action."""
        if len(ids) == 1:
            return self.queue.pop(0)
        seen = COUNTING.decode(ids).rpartition("user\n")[2]
        noted = re.search(r"## Your notes\n(\d+)", seen)
        self.counts.append(int(noted[1]) if noted else 0)
        text = f"<scratchpad>{self.counts[-1] + 1}</scratchpad><action>up</action>{END}"
        first, *self.queue = COUNTING.encode(text)
        return int(first)


NOTED = dataclasses.replace(
    ROUND, strategy="SCRATCHPAD", args={"size": 2, "max_turns": 4, "show_position": False}
)
COUNTING = train_tokenizer(NOTED, 0)


def test_notes_can_be_taken_away() -> None:
    for forget, counts in ((False, [0, 1, 2, 3]), (True, [0, 0, 0, 0])):
        player = Counter()
        score(player, COUNTING, NOTED, [0], forget=forget)
        assert player.counts == counts
