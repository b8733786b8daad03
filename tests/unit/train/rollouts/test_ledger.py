"""Rows: every sampled token once, after what it was sampled after, and nothing else trained on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evalkit.play.tokens import TokenTurn
from train.rollouts.ledger import rows_of

IDS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def turn(prompt: list[int], sampled: list[int], version: int = 1, first: float = -1.0) -> TokenTurn:
    return TokenTurn(
        prompt=tuple(prompt),
        sampled=tuple(sampled),
        logprobs=tuple(first - i for i in range(len(sampled))),
        versions=(version,) * len(sampled),
    )


def test_a_prompt_that_grows_is_one_row() -> None:
    (row,) = rows_of([turn([1, 2], [3, 4]), turn([1, 2, 3, 4, 9, 9], [5], version=2)])
    assert row.ids.tolist() == [1, 2, 3, 4, 9, 9, 5]
    assert row.trained.tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert row.logprobs.tolist() == [0, 0, -1, -2, 0, 0, -1]
    assert row.versions.tolist() == [-1, -1, 1, 1, -1, -1, 2]


def test_a_rewritten_prompt_begins_a_row() -> None:
    first, second = rows_of([turn([1, 2], [3]), turn([1, 9], [4])])
    assert (first.ids.tolist(), second.ids.tolist()) == ([1, 2, 3], [1, 9, 4])


def test_a_prompt_that_lacks_the_last_reply_begins_a_row() -> None:
    assert len(rows_of([turn([1, 2], [3, 4]), turn([1, 2, 3], [4])])) == 2


def test_no_turns_no_rows() -> None:
    assert rows_of([]) == ()


@given(st.lists(st.tuples(IDS, IDS, st.booleans()), min_size=1, max_size=8))
def test_each_sampled_token_is_trained_on_once_in_its_context(
    parts: list[tuple[list[int], list[int], bool]],
) -> None:
    turns: list[TokenTurn] = []
    for number, (new, sampled, goes_on) in enumerate(parts):
        held = [*turns[-1].prompt, *turns[-1].sampled] if turns and goes_on else []
        turns.append(turn([*held, *new], sampled, version=number))
    rows = rows_of(turns)
    told = []
    for row in rows:
        assert len(row.ids) == len(row.trained) == len(row.logprobs) == len(row.versions)
        told += [
            (row.ids[:at].tolist(), row.ids[at], row.logprobs[at], row.versions[at])
            for at in row.trained.nonzero()[0]
        ]
        assert (row.versions[row.trained == 0] == -1).all()
    sampled_from = [
        ([*each.prompt, *each.sampled[:i]], each.sampled[i], each.logprobs[i], each.versions[i])
        for each in turns
        for i in range(len(each.sampled))
    ]
    assert told == sampled_from
