import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import EpisodeOver, Parsed, ParseKind, TextEnv, parse_tag

TAGS = st.sampled_from(["action", "move", "a.b"])
WORDS = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=30)


class Switch(TextEnv):
    """The least that a TextEnv needs: every default is the base class's."""

    id = "switch"
    system_prompt = "Answer <action>on</action>."

    def __init__(self, *, max_turns: int = 3) -> None:
        self.max_turns = max_turns
        self.turn, self.on = 0, True

    def reset(self, *, seed: int, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.turn, self.on = 0, False
        return "off", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.on or self.turn >= self.max_turns:
            raise EpisodeOver("over")
        self.turn += 1
        self.on = action == "on"
        return "?", 0.0, self.on, not self.on and self.turn >= self.max_turns, {}

    @property
    def success(self) -> bool:
        return self.on

    def legal_actions(self) -> tuple[str, ...]:
        return ("on", "wait.")

    def oracle(self) -> str:
        return "on"

    def state(self) -> dict[str, Any]:
        return {"turn": self.turn, "on": self.on}

    def load(self, state: Mapping[str, Any]) -> None:
        self.turn, self.on = state["turn"], state["on"]


class Stuck(Switch):
    def oracle(self) -> str:
        return "wait."


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<action>up</action>", Parsed("up", ParseKind.OK)),
        ("I go. <ACTION>\n Up </Action> Bye", Parsed("up", ParseKind.OK)),
        ("<action>up</action><action>down</action>", Parsed("up", ParseKind.MULTI_ACTION)),
        ("<think><action>up</action></think><action>down", Parsed("up", ParseKind.MULTI_ACTION)),
        ("<action>up", Parsed("up", ParseKind.UNCLOSED)),
        ("<action> up\n", Parsed("up", ParseKind.UNCLOSED)),
        ("<action></action>", Parsed(None, ParseKind.NO_ACTION)),
        ("<action>", Parsed(None, ParseKind.NO_ACTION)),
        ("<move>5</move>", Parsed(None, ParseKind.NO_ACTION)),
        ("up", Parsed(None, ParseKind.NO_ACTION)),
        ("", Parsed(None, ParseKind.EMPTY)),
        (" \n\t", Parsed(None, ParseKind.EMPTY)),
    ],
)
def test_parse_tag(completion: str, expected: Parsed) -> None:
    assert parse_tag(completion, "action") == expected


@given(TAGS, st.text())
def test_parse_tag_reads_anything(tag: str, completion: str) -> None:
    parsed = parse_tag(completion, tag)
    assert (parsed.action is None) == (parsed.kind in {ParseKind.NO_ACTION, ParseKind.EMPTY})
    assert parsed.action is None or parsed.action == parsed.action.strip().lower() != ""


@given(TAGS, WORDS, WORDS, WORDS)
def test_parse_tag_finds_what_was_written(tag: str, before: str, action: str, after: str) -> None:
    parsed = parse_tag(f"{before}<{tag}>{action}</{tag}>{after}", tag)
    wanted = action.strip().lower()
    assert parsed == (Parsed(wanted, ParseKind.OK) if wanted else Parsed(None, ParseKind.NO_ACTION))


@given(TAGS, st.lists(WORDS.filter(str.strip), min_size=2, max_size=4))
def test_parse_tag_takes_the_first_of_several(tag: str, actions: list[str]) -> None:
    completion = " ".join(f"<{tag}>{action}</{tag}>" for action in actions)
    wanted = actions[0].strip().lower()
    assert parse_tag(completion, tag) == Parsed(wanted, ParseKind.MULTI_ACTION)


def test_defaults_of_the_base_class() -> None:
    env = Switch()
    env.reset(seed=0)
    assert env.params == {"max_turns": 3}
    assert env.all_actions() == ("on", "wait.")
    assert env.format_action("on") == "<action>on</action>"
    assert re.fullmatch(env.action_pattern(), "<action>wait.</action>")
    assert not re.fullmatch(env.action_pattern(), "<action>waits</action>")
    assert "<scratchpad>" in env.scratchpad_prompt
    assert env.optimal_scratchpad() == ""
    assert env.tools() == []
    assert env.render() == "{'turn': 0, 'on': False}"


def test_optimal_turns_plays_the_oracle_on_a_clone() -> None:
    env = Switch()
    env.reset(seed=0)
    assert env.optimal_turns() == 1
    assert env.state() == {"turn": 0, "on": False}
    stuck = Stuck()
    stuck.reset(seed=0)
    assert stuck.optimal_turns() is None


def test_clone_is_independent() -> None:
    env = Switch()
    env.reset(seed=0)
    env.clone().step("on")
    assert not env.success
