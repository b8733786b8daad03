"""Rules about what an env shows: its parameters, prompts, actions, and nothing hidden.

Knows no env in particular.
"""

from __future__ import annotations

import inspect
import json
import re

from envs.base import NO_ACTION, Parsed, ParseKind, TextEnv
from envs.conformance.lab import GARBAGE, Lab, Twins, as_json, mixed_policy, record, require
from envs.playing import play

_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def constructible(lab: Lab) -> str:
    """Check that the factory makes a new `TextEnv` each time."""
    env = lab.factory()
    require(isinstance(env, TextEnv), f"the factory made a {type(env).__name__}, no TextEnv")
    require(env is not lab.factory(), "the factory made the same object twice")
    require(isinstance(env.max_turns, int), f"max_turns is no int: {env.max_turns!r}")
    require(env.max_turns >= 1, f"max_turns is {env.max_turns}, not 1 or more")
    return f"{type(env).__name__}, at most {env.max_turns} turns"


def params(lab: Lab) -> str:
    """Check that `params` is JSON and makes the same env again."""
    env = lab.factory()
    accepted = inspect.signature(type(env)).parameters.values()
    missing = sorted({one.name for one in accepted if one.kind not in _REST} - set(env.params))
    require(not missing, f"params lacks what {type(env).__name__}() takes: {missing}")
    text = as_json(env.params, "params")
    again = type(env)(**json.loads(text))
    kept = as_json(again.params, "params")
    require(kept == text, f"{type(env).__name__}(**params) has other params: {kept}, not {text}")
    for seed in lab.several:
        same = record(again, seed) == record(lab.factory(), seed)
        require(same, f"seed {seed}: {type(env).__name__}(**params) plays differently")
    return text


def prompts(lab: Lab) -> str:
    """Check that the system prompt is there after `reset` and shows how to answer."""
    env = lab.factory()
    env.reset(seed=0)
    prompt = env.system_prompt
    require(bool(prompt.strip()), "system_prompt is empty")
    shown = any(env.format_action(action) in prompt for action in env.all_actions())
    tag = f"<{env.action_tag}>"
    require(shown or tag in prompt, f"system_prompt does not show the answer's form, {tag}")
    return f"system prompt of {len(prompt)} characters"


def legal_actions(lab: Lab) -> str:
    """Check that always something is legal, known, and not flagged when taken."""
    choose = mixed_policy()
    tried = 0

    def watching(env: TextEnv, observation: str) -> str:
        nonlocal tried
        legal = env.legal_actions()
        require(isinstance(legal, tuple), f"legal_actions() is no tuple: {legal!r}")
        require(bool(legal), "legal_actions() is empty before the end")
        require(len(set(legal)) == len(legal), f"legal_actions() repeats itself: {legal}")
        unknown = sorted(set(legal) - set(env.all_actions()))
        require(not unknown, f"legal, but not in all_actions(): {unknown}")
        for action in legal:
            flagged = env.clone().step(action)[4].get("illegal")
            require(not flagged, f"legal {action!r} is flagged as illegal")
        tried += len(legal)
        return choose(env, observation)

    for seed in lab.few:
        play(lab.factory(), seed, watching)
    return f"{tried} legal actions tried"


def answer_form(lab: Lab) -> str:
    """Check that `action_pattern` admits and `parse` reads what `format_action` writes."""
    env = lab.factory()
    env.reset(seed=0)
    known = env.all_actions()
    pattern = re.compile(env.action_pattern())
    for action in known:
        form = env.format_action(action)
        require(pattern.fullmatch(form) is not None, f"action_pattern() does not admit {form}")
        read = env.parse(form)
        fits = read == Parsed(action, ParseKind.OK)
        require(fits, f"parse reads {form} as {read.action!r} ({read.kind})")
    for text in GARBAGE:
        garbled = env.parse(text).action
        require(garbled not in known, f"parse reads garbage {text[:30]!r} as {garbled!r}")
        require(pattern.fullmatch(text) is None, f"action_pattern() admits {text[:30]!r}")
    return f"{len(known)} actions written and read back"


def hidden(lab: Lab) -> str:
    """Check that observations hold neither state nor answer, and that twins look alike."""
    choose = mixed_policy()
    compared = 0

    def watching(env: TextEnv, observation: str) -> str:
        nonlocal compared
        _require_discreet(env, observation)
        compared += _compare_twins(lab, lab.twins, env) if lab.twins is not None else 0
        return choose(env, observation)

    for seed in lab.few:
        play(lab.factory(), seed, watching)
    if lab.twins is None:
        return "neither state nor answer in an observation (no twins given to compare)"
    require(compared > 0, "twins gave no state to compare with")
    return f"{compared} twin states look alike"


def _require_discreet(env: TextEnv, observation: str) -> None:
    state = env.state()
    for text in (json.dumps(state), repr(state)):
        require(not state or text not in observation, "the observation contains state()")
    answer = env.oracle()
    named = [action for action in env.legal_actions() if env.format_action(action) in observation]
    telling = answer in named and len(named) < len(env.legal_actions())
    require(not telling, f"the observation singles out the oracle's {answer!r}")


def _compare_twins(lab: Lab, twins: Twins, env: TextEnv) -> int:
    """Compare all that a player may see of `env` and of each state it could as well be in."""
    count = 0
    for twin in twins(env):
        other, mine = lab.factory(), env.clone()
        other.load(twin)
        for what in ("system_prompt", "optimal_scratchpad", "legal_actions"):
            require(_ask(other, what) == _ask(mine, what), f"{what} tells what is hidden")
        alike = other.step(NO_ACTION)[0] == mine.step(NO_ACTION)[0]
        require(alike, "the observation tells what is hidden: it differs from its twin's")
        count += 1
    return count


def _ask(env: TextEnv, what: str) -> object:
    answer = getattr(env, what)
    return answer() if callable(answer) else answer
