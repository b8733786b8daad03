"""The six history strategies: exact messages, purity, bounds, and how they are named."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import TextEnv
from envs.base import Info, StepResult
from evalkit.errors import RunFailed
from evalkit.play.strategies import (
    STRATEGIES,
    FullHistory,
    History,
    Message,
    Messages,
    NoHistory,
    OptimalScratchpad,
    Scratchpad,
    Strategy,
    Summary,
    Window,
    message,
    parse_strategy,
    prompt_digest,
)
from evalkit.record.trajectory import Memory


class Counting(TextEnv):
    """Counts its turns; its notes are the count."""

    id = "counting"
    max_turns = 5

    def __init__(self) -> None:
        self._turn = 0

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        self._turn = 0
        return "o0", {}

    def step(self, action: str) -> StepResult:
        self._turn += 1
        return f"o{self._turn}", 0.0, False, self._turn >= self.max_turns, {}

    @property
    def success(self) -> bool:
        return False

    def legal_actions(self) -> tuple[str, ...]:
        return ("go",)

    def oracle(self) -> str:
        return "go"

    def state(self) -> dict[str, Any]:
        return {"turn": self._turn}

    def load(self, state: Mapping[str, Any]) -> None:
        self._turn = state["turn"]

    @property
    def system_prompt(self) -> str:
        return "RULES"

    @property
    def scratchpad_prompt(self) -> str:
        return "KEEP NOTES"

    def optimal_scratchpad(self) -> str:
        return f"{self._turn} turns so far" if self._turn else ""


REPLIES = ("a<scratchpad> one </scratchpad>", "no notes", "<scratchpad>x</scratchpad>")

Chat = list[tuple[str, str]]
ALL = ["NO_HISTORY", "FULL_HISTORY", "SCRATCHPAD", "OPTIMAL_SCRATCHPAD", "WINDOW", "SUMMARY"]


def chat(messages: Messages) -> Chat:
    return [(message.role, message.content) for message in messages]


def started(strategy: Strategy) -> tuple[History, Counting]:
    env = Counting()
    env.reset(seed=0)
    return strategy.start(env), env


def prompts(strategy: Strategy, replies: tuple[str, ...] = REPLIES) -> list[Chat]:
    """Return the prompt of each turn, and the one after the last reply."""
    history, env = started(strategy)
    seen, observation = [], "o0"
    for reply in replies:
        seen.append(chat(history.messages(observation)))
        history = history.update(observation, reply, "go")
        observation = env.step("go")[0]
    seen.append(chat(history.messages(observation)))
    return seen


RULES = ("system", "RULES")
SEEN = [("user", f"o{turn}") for turn in range(4)]
SAID = [("assistant", reply) for reply in REPLIES]
PAD_RULES = ("system", "RULES\n\nKEEP NOTES")

EXPECTED: list[tuple[Strategy, list[Chat]]] = [
    (NoHistory(), [[RULES, SEEN[0]], [RULES, SEEN[1]], [RULES, SEEN[2]], [RULES, SEEN[3]]]),
    (
        FullHistory(),
        [
            [RULES, SEEN[0]],
            [RULES, SEEN[0], SAID[0], SEEN[1]],
            [RULES, SEEN[0], SAID[0], SEEN[1], SAID[1], SEEN[2]],
            [RULES, SEEN[0], SAID[0], SEEN[1], SAID[1], SEEN[2], SAID[2], SEEN[3]],
        ],
    ),
    (
        Window(k=1),
        [
            [RULES, SEEN[0]],
            [RULES, SEEN[0], SAID[0], SEEN[1]],
            [RULES, SEEN[1], SAID[1], SEEN[2]],
            [RULES, SEEN[2], SAID[2], SEEN[3]],
        ],
    ),
    (
        Scratchpad(),
        [
            [PAD_RULES, SEEN[0]],
            [PAD_RULES, ("user", "## Your notes\none\n\n## Now\no1")],
            [PAD_RULES, ("user", "## Your notes\none\n\n## Now\no2")],
            [PAD_RULES, ("user", "## Your notes\nx\n\n## Now\no3")],
        ],
    ),
    (
        OptimalScratchpad(),
        [
            [RULES, SEEN[0]],
            [RULES, ("user", "## Your notes\n1 turns so far\n\n## Now\no1")],
            [RULES, ("user", "## Your notes\n2 turns so far\n\n## Now\no2")],
            [RULES, ("user", "## Your notes\n3 turns so far\n\n## Now\no3")],
        ],
    ),
    (
        Summary(k=1),
        [
            [RULES, SEEN[0]],
            [RULES, SEEN[0], SAID[0], SEEN[1]],
            [RULES, SEEN[1], SAID[1], ("user", "## Earlier turns\n1. o0 You: go.\n\n## Now\no2")],
            [
                RULES,
                SEEN[2],
                SAID[2],
                ("user", "## Earlier turns\n1. o0 You: go.\n2. o1 You: go.\n\n## Now\no3"),
            ],
        ],
    ),
]


def test_the_table_below_has_every_strategy() -> None:
    assert [type(strategy) for strategy, _ in EXPECTED] == [
        STRATEGIES[name]
        for name in (
            "NO_HISTORY",
            "FULL_HISTORY",
            "WINDOW",
            "SCRATCHPAD",
            "OPTIMAL_SCRATCHPAD",
            "SUMMARY",
        )
    ]
    assert sorted(STRATEGIES) == sorted(ALL)


@pytest.mark.parametrize(("strategy", "expected"), EXPECTED, ids=lambda value: str(value)[:30])
def test_messages_of_three_turns(strategy: Strategy, expected: list[Chat]) -> None:
    assert prompts(strategy) == expected


texts = st.text(max_size=60)
turns = st.lists(st.tuples(texts, texts, st.sampled_from([None, "go"])), max_size=8)


@pytest.mark.parametrize("name", ALL)
@given(played=turns)
def test_messages_are_pure_and_bytes_parse_back(
    name: str, played: list[tuple[str, str, str | None]]
) -> None:
    history, _ = started(parse_strategy(name))
    for observation, reply, action in played:
        before = history.messages(observation)
        assert history.messages(observation) == before
        later = history.update(observation, reply, action)
        assert history.messages(observation) == before
        assert later.messages("next") == history.update(observation, reply, action).messages("next")
        for sent in before:
            parsed = json.loads(sent.json)
            assert parsed == {"role": sent.role, "content": sent.content}
            assert list(parsed) == ["role", "content"]
        assert before[0].role == "system"
        assert [message.role for message in before[1:]] == [
            "user" if position % 2 == 0 else "assistant" for position in range(len(before) - 1)
        ]
        history = later


@given(played=turns)
def test_full_history_grows_by_two_a_turn(played: list[tuple[str, str, str | None]]) -> None:
    history, _ = started(FullHistory())
    for number, (observation, reply, action) in enumerate(played):
        assert len(history.messages(observation)) == 2 + 2 * number
        history = history.update(observation, reply, action)


@given(k=st.integers(1, 5), played=turns)
def test_window_never_exceeds_its_turns(k: int, played: list[tuple[str, str, str | None]]) -> None:
    history, _ = started(Window(k=k))
    for number, (observation, reply, action) in enumerate(played):
        assert len(history.messages(observation)) == 2 + 2 * min(k, number)
        history = history.update(observation, reply, action)


@pytest.mark.parametrize(
    ("before", "reply", "notes", "memory"),
    [
        ("", "<scratchpad>a</scratchpad>", "a", Memory.REPLACED),
        ("old", "<scratchpad>new</scratchpad>", "new", Memory.REPLACED),
        ("old", "<scratchpad></scratchpad>", "", Memory.REPLACED),
        ("old", "nothing", "old", Memory.MISSING),
        ("old", "<scratchpad>never closed", "old", Memory.MISSING),
        ("old", "closed first</scratchpad>", "old", Memory.MISSING),
        ("old", "</scratchpad><scratchpad>x</scratchpad>", "x", Memory.REPLACED),
        ("", "<scratchpad>a</scratchpad><scratchpad>b</scratchpad>", "a", Memory.REPLACED),
        ("", "<SCRATCHPAD>\n a\nb \n</Scratchpad>", "a\nb", Memory.REPLACED),
        ("", "<scratchpad>a<scratchpad>b</scratchpad>", "a<scratc", Memory.OVERFLOW),
        ("", "<scratchpad>12345678</scratchpad>", "12345678", Memory.REPLACED),
        ("", "<scratchpad>123456789</scratchpad>", "12345678", Memory.OVERFLOW),
    ],
)
def test_scratchpad(before: str, reply: str, notes: str, memory: Memory) -> None:
    history, _ = started(Scratchpad(max_chars=8))
    history = history.update("o", f"<scratchpad>{before}</scratchpad>", None)
    assert history.notes == before
    history = history.update("o", reply, None)
    assert (history.notes, history.last_memory) == (notes, memory)


@given(text=st.text(), size=st.integers(1, 20))
def test_scratchpad_never_exceeds_its_cap(text: str, size: int) -> None:
    history, _ = started(Scratchpad(max_chars=size))
    assert len(history.update("o", f"<scratchpad>{text}</scratchpad>", None).notes) <= size


def test_a_megabyte_of_opened_scratchpads_takes_no_time() -> None:
    history, _ = started(Scratchpad())
    assert history.update("o", "<scratchpad>" * 90_000, None).last_memory is Memory.MISSING


def test_only_strategies_with_notes_say_what_a_reply_did_to_them() -> None:
    kept = {}
    for name in ALL:
        history, _ = started(parse_strategy(name))
        kept[name] = history.update("o", "<scratchpad>x</scratchpad>", "go").last_memory
    assert {name for name, memory in kept.items() if memory is not None} == {"SCRATCHPAD"}


def test_optimal_notes_follow_the_env() -> None:
    history, env = started(OptimalScratchpad())
    assert history.notes == ""
    env.step("go")
    assert history.notes == "1 turns so far"


def test_summary_shortens_long_observations_and_names_missing_actions() -> None:
    history, _ = started(Summary(k=1))
    history = history.update("word " * 40, "reply", None).update("o1", "reply", "go")
    assert history.notes == f"1. {('word ' * 20)}... You: no action."


def test_stopping_is_what_strategies_do_when_a_prompt_does_not_fit() -> None:
    shrunk = {}
    for name in ALL:
        history, _ = started(parse_strategy(name))
        shrunk[name] = history.update("o", "r", "go").shrink()
    assert shrunk == dict.fromkeys(ALL)


def test_drop_oldest_forgets_one_turn_at_a_time_down_to_none() -> None:
    history, _ = started(FullHistory(overflow="drop_oldest"))
    history = history.update("o0", "r0", "go").update("o1", "r1", "go")
    shorter = history.shrink()
    assert shorter is not None
    assert chat(shorter.messages("o2")) == [RULES, SEEN[1], ("assistant", "r1"), SEEN[2]]
    shortest = shorter.shrink()
    assert shortest is not None
    assert chat(shortest.messages("o2")) == [RULES, SEEN[2]]
    assert shortest.shrink() is None


def test_overflow_error_ends_the_run() -> None:
    history, _ = started(FullHistory(overflow="error"))
    with pytest.raises(RunFailed, match="FULL_HISTORY"):
        history.shrink()


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("NO_HISTORY", NoHistory()),
        ("no_history", NoHistory()),
        (" FULL_HISTORY ", FullHistory()),
        ("FULL_HISTORY(overflow=drop_oldest)", FullHistory(overflow="drop_oldest")),
        ("FULL_HISTORY(error)", FullHistory(overflow="error")),
        ("SCRATCHPAD", Scratchpad()),
        ("SCRATCHPAD(300)", Scratchpad(max_chars=300)),
        ("OPTIMAL_SCRATCHPAD", OptimalScratchpad()),
        ("WINDOW", Window()),
        ("WINDOW()", Window()),
        ("WINDOW(2)", Window(k=2)),
        ("window( k = 2 )", Window(k=2)),
        ("SUMMARY(3)", Summary(k=3)),
    ],
)
def test_strategies_are_read(text: str, strategy: Strategy) -> None:
    assert parse_strategy(text) == strategy
    assert parse_strategy(str(strategy)) == strategy


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        (Window(), "WINDOW"),
        (Window(k=2), "WINDOW(k=2)"),
        (Scratchpad(max_chars=9), "SCRATCHPAD(max_chars=9)"),
        (FullHistory(overflow="error"), "FULL_HISTORY(overflow=error)"),
    ],
)
def test_strategies_are_written_without_their_defaults(strategy: Strategy, text: str) -> None:
    assert str(strategy) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no strategy ''"),
        ("MEMORY", "no strategy 'MEMORY'"),
        ("getattr", "no strategy"),
        ("WINDOW(2", "no strategy"),
        ("WINDOW(0)", "WINDOW(k) is at least 1, not 0"),
        ("WINDOW(-1)", "WINDOW(k) is at least 1, not -1"),
        ("WINDOW(--1)", "is a whole number, not '--1'"),
        ("WINDOW(²)", "is a whole number"),
        ("WINDOW(two)", "WINDOW(k) is a whole number, not 'two'"),
        ("WINDOW(k=)", "is a whole number, not ''"),
        ("WINDOW(size=2)", "WINDOW takes k, not 'size=2'"),
        ("WINDOW(2,3)", "k is given twice"),
        ("WINDOW(2,k=3)", "k is given twice"),
        ("NO_HISTORY(3)", "NO_HISTORY takes no parameters, not '3'"),
        ("SCRATCHPAD(0)", "SCRATCHPAD(max_chars) is at least 1"),
        ("SUMMARY(0)", "SUMMARY(k) is at least 1"),
        ("FULL_HISTORY(5)", "overflow is stop, drop_oldest or error, not 5"),
        ("FULL_HISTORY(overflow=shrug)", "overflow is stop, drop_oldest or error, not 'shrug'"),
    ],
)
def test_strategies_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_strategy(text)


def test_a_guided_answer_is_the_action_and_with_a_scratchpad_the_notes_before_it() -> None:
    _, env = started(NoHistory())
    action = "<action>(go)</action>"
    patterns = {name: parse_strategy(name).answer_pattern(env) for name in ALL}
    pads = r"<scratchpad>[^<]{1,400}</scratchpad>" + "\n" + action
    assert patterns == {**dict.fromkeys(ALL, action), "SCRATCHPAD": pads.replace("\n", r"\n")}
    assert Scratchpad(max_chars=9).answer_pattern(env).startswith("<scratchpad>[^<]{1,9}<")


def test_a_prompt_digest_names_the_bytes() -> None:
    one, other = Message("user", "a"), Message("user", "b")
    assert prompt_digest((one, other)) == prompt_digest((one, Message("user", "b")))
    digests = {prompt_digest(each) for each in ((one,), (other,), (one, other), (other, one))}
    assert len(digests) == 4
    assert message("system", "RULES") is message("system", "RULES")
