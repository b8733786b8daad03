"""Rules that make an episode repeatable: its chance, its state, its copies.

Knows no env in particular.
"""

from __future__ import annotations

import json
import random

from envs.base import TextEnv
from envs.conformance.lab import Lab, Recording, as_json, record, require, state_of, step_line
from envs.playing import oracle_policy, play


def own_rng(lab: Lab) -> str:
    """Check that the process-wide `random` is neither drawn from, nor seeded, nor listened to."""
    saved = random.getstate()
    played: list[list[Recording]] = []
    try:
        for global_seed in (1, 2):
            random.seed(global_seed)
            before = random.getstate()
            env = lab.factory()
            play(env, 0, oracle_policy)
            played.append([record(env, seed) for seed in lab.several])
            untouched = random.getstate() == before
            require(untouched, "the global `random` was used: own a random.Random(seed)")
    finally:
        random.setstate(saved)
    alike = played[0] == played[1]
    require(alike, "episodes depend on the global `random`: own a random.Random(seed)")
    return "the global random generator is left alone"


def seeds(lab: Lab) -> str:
    """Check that equal seeds give equal bytes, in a used env too, and different seeds differ."""
    used = lab.factory()
    episodes = set()
    for seed in lab.several:
        first = record(used, seed)
        same = first == record(used, seed) == record(lab.factory(), seed)
        require(same, f"seed {seed} played twice gives two different episodes")
        episodes.add((first.first, first.lines))
    require(len(episodes) > 1, f"all of {len(lab.several)} seeds give the same episode")
    return f"{len(episodes)} different episodes of {len(lab.several)} seeds"


def interleaving(lab: Lab) -> str:
    """Check that episodes played side by side go as each goes alone."""
    alone = [record(lab.factory(), seed) for seed in lab.several]
    envs = [lab.factory() for _ in lab.several]
    for seed, env in zip(lab.several, envs, strict=True):
        env.reset(seed=seed)
    for turn in range(max(len(episode.actions) for episode in alone)):
        for seed, env in zip(lab.several, envs, strict=True):
            episode = alone[seed]
            if turn < len(episode.actions):
                same = step_line(env, episode.actions[turn]) == episode.lines[turn]
                require(same, f"seed {seed}, turn {turn + 1}: among others it goes differently")
    return f"{len(envs)} episodes at once do not disturb each other"


def state(lab: Lab) -> str:
    """Check that `state` is JSON and `load` of it continues identically, at every turn."""
    size = 0
    for seed in lab.few:
        episode = record(lab.factory(), seed)
        env = lab.factory()
        env.reset(seed=seed)
        for turn, action in enumerate(episode.actions):
            text = state_of(env)
            size = max(size, len(text))
            fork = lab.factory()
            fork.load(json.loads(text))
            where = f"seed {seed}, after turn {turn}"
            require(state_of(fork) == text, f"{where}: load(state()) gives another state()")
            _require_same_face(fork, env, where)
            _require_goes_on(fork, episode, turn, f"{where}: load(state())")
            require(state_of(env) == text, f"{where}: load(state()) shares data with its source")
            env.step(action)
    return f"at most {size} bytes of JSON"


def clone(lab: Lab) -> str:
    """Check that a clone and its original play on without touching each other."""
    for seed in lab.few:
        episode = record(lab.factory(), seed)
        half = len(episode.actions) // 2
        env = lab.factory()
        env.reset(seed=seed)
        for action in episode.actions[:half]:
            env.step(action)
        before = state_of(env)
        early, late = env.clone(), env.clone()
        for player in (early, env, late):
            intact = state_of(player) == before
            require(intact, f"seed {seed}: a clone and its original share data")
            _require_goes_on(player, episode, half, f"seed {seed}: clone()")
    return "clones are independent"


def queries(lab: Lab) -> str:
    """Check that asking has no effect: legal actions, oracle, picture, notes."""
    for seed in lab.few:
        env = lab.factory()
        env.reset(seed=seed)
        before = state_of(env)
        texts = (env.oracle(), env.render(), env.optimal_scratchpad(), env.scratchpad_prompt)
        require(all(isinstance(text, str) for text in texts), "a text is no string")
        turns = env.optimal_turns()
        require(turns is None or turns >= 1, f"optimal_turns() is {turns} before the end")
        as_json(env.tools(), "tools()")
        require(env.legal_actions() == env.legal_actions(), "legal_actions() changes when asked")
        require(state_of(env) == before, "asking for something changed the state")
    return "asking changes nothing"


def _require_same_face(fork: TextEnv, env: TextEnv, where: str) -> None:
    require(fork.system_prompt == env.system_prompt, f"{where}: load() loses the system prompt")
    require(fork.legal_actions() == env.legal_actions(), f"{where}: load() loses legal actions")
    require(fork.oracle() == env.oracle(), f"{where}: load() changes the oracle's mind")


def _require_goes_on(env: TextEnv, episode: Recording, turn: int, what: str) -> None:
    lines = tuple(step_line(env, action) for action in episode.actions[turn:])
    require(lines == episode.lines[turn:], f"{what} goes on differently")
