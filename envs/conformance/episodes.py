"""Rules about how episodes run and end, who succeeds in them, and how long a turn takes.

Knows no env in particular.
"""

from __future__ import annotations

import math
import random
from statistics import fmean, median
from time import perf_counter

from envs.base import NO_ACTION, EpisodeOver, TextEnv
from envs.conformance.lab import (
    GARBAGE,
    Lab,
    RuleBroken,
    as_json,
    mixed_policy,
    record,
    require,
    state_of,
)
from envs.playing import Played, play, random_policy

_ECHO_LIMIT = 1_000


def steps(lab: Lab) -> str:
    """Check that turns are well-formed five-tuples and episodes end within `max_turns`."""
    turns = sum(_well_formed_turns(lab.factory(), seed) for seed in lab.several)
    return f"{turns} turns in {len(lab.several)} episodes"


def oracle(lab: Lab) -> str:
    """Check that the oracle succeeds on every seed; if not solvable, no less than chance does."""
    env = lab.factory()
    played = [play(env, seed, _legal_oracle) for seed in range(lab.seeds)]
    won = sum(one.success for one in played)
    found = f"success {won} of {lab.seeds}, {fmean(one.turns for one in played):.2f} turns"
    if not env.solvable:
        by_chance = random_policy(random.Random(0))
        won_by_chance = sum(play(env, seed, by_chance).success for seed in range(lab.seeds))
        require(won >= won_by_chance, f"oracle: {found}; random legal actions: {won_by_chance}")
        return f"{found}; random legal actions {won_by_chance}"
    lost = next((one.seed for one in played if not one.success), None)
    require(lost is None, f"{found}; seed {lost} is lost (solvable = False if chance forbids)")
    _require_promises_kept(env, [played[seed] for seed in lab.several])
    return found


def noop(lab: Lab) -> str:
    """Check that a policy that never acts never succeeds and never gains."""
    env = lab.factory()
    for seed in range(lab.seeds):
        one = play(env, seed, lambda _env, _observation: NO_ACTION)
        require(not one.success, f"seed {seed}: doing nothing succeeds")
        require(one.return_ <= 0, f"seed {seed}: doing nothing returns {one.return_}")
    return f"{lab.seeds} idle episodes, no success, no gain"


def episode_over(lab: Lab) -> str:
    """Check that `step` before `reset` and after the end raises and changes nothing."""
    env = lab.factory()
    _require_over(env, NO_ACTION, "before reset")
    for seed in lab.several:
        episode = record(env, seed)
        before = state_of(env)
        for action in (episode.actions[-1], NO_ACTION):
            _require_over(env, action, f"after the end of seed {seed}")
        require(state_of(env) == before, "step after the end changed the state")
    return "EpisodeOver before reset and after the end"


def invalid_actions(lab: Lab) -> str:
    """Check that garbage is flagged with a reason, costs the turn, earns nothing, never raises."""
    env = lab.factory()
    env.reset(seed=0)
    known = env.all_actions()
    tried = [text for text in GARBAGE if text not in known]
    for garbage in tried:
        _require_costs(env, garbage)
    return f"{len(tried)} kinds of garbage cost their turns and earn nothing"


def speed(lab: Lab) -> str:
    """Check that a `step` is fast enough: median over episodes, best of several tries."""
    env = lab.factory()
    episodes = [(seed, record(env, seed).actions) for seed in lab.several]
    best = math.inf
    for _ in range(7):
        best = min(best, median(_us_per_turn(env, seed, actions) for seed, actions in episodes))
        if best < lab.max_us_per_turn / 2:
            break
    verdict = f"{best:.2f} µs a turn, the limit is {lab.max_us_per_turn:g}"
    require(best < lab.max_us_per_turn, verdict)
    return verdict


def _well_formed_turns(env: TextEnv, seed: int) -> int:
    """Play one episode and return its turns."""
    observation, info = env.reset(seed=seed)
    _require_shown(observation, info, f"reset of seed {seed}")
    require(env.success is False, f"seed {seed}: success is not False right after reset")
    choose = mixed_policy()
    for turn in range(1, env.max_turns + 1):
        result = env.step(choose(env, observation))
        observation, _, terminated, truncated, _ = result
        _require_step(result, f"seed {seed}, turn {turn}")
        if terminated or truncated:
            require(isinstance(env.success, bool), f"success is no bool: {env.success!r}")
            return turn
    raise RuleBroken(f"seed {seed}: not over after max_turns = {env.max_turns} turns")


def _require_shown(observation: object, info: object, where: str) -> None:
    text = isinstance(observation, str) and bool(observation)
    require(text, f"{where}: the observation is no text: {observation!r}")
    require(isinstance(info, dict), f"{where}: info is no dict: {info!r}")
    as_json(info, f"{where}: info")


def _require_step(result: tuple[object, ...], where: str) -> None:
    observation, reward, terminated, truncated, info = result
    _require_shown(observation, info, where)
    finite = isinstance(reward, (int, float)) and math.isfinite(reward)
    require(finite, f"{where}: the reward is no finite number: {reward!r}")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        require(isinstance(flag, bool), f"{where}: {name} is no bool: {flag!r}")
    require(not (terminated and truncated), f"{where}: both terminated and truncated")


def _require_over(env: TextEnv, action: str, when: str) -> None:
    try:
        env.step(action)
    except EpisodeOver:
        return
    raise RuleBroken(f"step {when} does not raise EpisodeOver")


def _legal_oracle(env: TextEnv, observation: str) -> str:  # noqa: ARG001 - a Policy's signature
    action = env.oracle()
    require(action in env.legal_actions(), f"the oracle's {action!r} is not legal")
    return action


def _require_promises_kept(env: TextEnv, played: list[Played]) -> None:
    for one in played:
        env.reset(seed=one.seed)
        promised = env.optimal_turns()
        kept = promised == one.turns
        require(kept, f"seed {one.seed}: optimal_turns() {promised}, the oracle's {one.turns}")


def _require_costs(env: TextEnv, garbage: str) -> None:
    """Play one episode of nothing but `garbage`."""
    shown = repr(garbage[:30])
    first, _ = env.reset(seed=0)
    for _ in range(env.max_turns):
        observation, reward, terminated, truncated, info = env.step(garbage)
        require(info.get("illegal") is True, f"{shown} is not flagged: info['illegal'] = True")
        require(bool(info.get("error")), f"{shown}: no reason in info['error']")
        require(reward <= 0, f"{shown} earns {reward}")
        echoed = len(observation) > len(first) + _ECHO_LIMIT
        require(not echoed, f"{shown}... echoed at length: {len(observation)} characters")
        if terminated or truncated:
            require(not env.success, f"an episode of {shown} succeeds")
            return
    raise RuleBroken(f"{shown} costs no turn: not over after max_turns = {env.max_turns}")


def _us_per_turn(env: TextEnv, seed: int, actions: tuple[str, ...]) -> float:
    env.reset(seed=seed)
    start = perf_counter()
    for action in actions:
        env.step(action)
    return (perf_counter() - start) * 1e6 / len(actions)
