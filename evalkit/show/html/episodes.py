"""The episodes that a page carries: those that say most, cut to a size, as data for its script.

Must not know how they are drawn.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import orjson

from evalkit.record.chosen import Source, read_chosen
from evalkit.record.numbers import ArmNumbers
from evalkit.record.trajectory import Key, Trajectory, Turn

MOST_SEEDS = 40
MOST_FLIPS = 24
MOST_ERRORS = 8
MOST_BYTES = 3_000_000
MOST_TURNS = 80
MOST_CHARS = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One seed that is worth a look, and which of its repetitions."""

    kind: str
    """flip, error or alike."""
    seed: int
    repetition: int


def choose(numbers: Mapping[str, ArmNumbers]) -> tuple[list[Choice], dict[str, int]]:
    """Choose seeds: flips of every sort by turns, then errors, then seeds that ended alike.

    Returns them with the number of all seeds of each kind.
    """
    arms = list(numbers.values())
    errors = sorted(set().union(*(found.lost for found in arms)))
    shared = set.intersection(*(set(found.success) for found in arms)) - set(errors)
    groups: dict[tuple[float, ...], list[int]] = {}
    for seed in sorted(shared):
        values = (arm.success[seed] for arm in arms)
        groups.setdefault(tuple(sum(of) / len(of) for of in values), []).append(seed)
    ordered = [groups[pattern] for pattern in sorted(groups)]
    flips = _in_turns(groups[pattern] for pattern in sorted(groups) if len(set(pattern)) > 1)
    alike = _in_turns(of for pattern, of in sorted(groups.items()) if len(set(pattern)) == 1)
    first = [("flip", seed) for seed in flips[:MOST_FLIPS]]
    first += [("error", seed) for seed in errors[:MOST_ERRORS]]
    rest = [("alike", seed) for seed in alike] + [("flip", seed) for seed in flips[MOST_FLIPS:]]
    chosen = (first + rest)[:MOST_SEEDS]
    order = {"flip": 0, "error": 1, "alike": 2}
    choices = [
        Choice(kind=kind, seed=seed, repetition=_repetition(arms, seed) if kind == "flip" else 0)
        for kind, seed in sorted(chosen, key=lambda one: order[one[0]])
    ]
    counts = {
        "flip": len(flips),
        "error": len(errors),
        "alike": sum(map(len, ordered)) - len(flips),
    }
    return choices, counts


def episode_data(
    numbers: Mapping[str, ArmNumbers],
    sources: Mapping[str, Source],
    strategies: Mapping[str, str],
) -> dict[str, Any]:
    """Return the chosen episodes of all arms, and what was left out.

    Arms without a source are not there. Stops before `MOST_BYTES`.
    """
    arms = [arm for arm in numbers if arm in sources]
    choices, counts = choose({arm: numbers[arm] for arm in arms}) if arms else ([], {})
    read = read_chosen(
        {arm: sources[arm] for arm in arms}, [(one.seed, one.repetition) for one in choices]
    )
    seeds: list[dict[str, Any]] = []
    size_bytes = 0
    for choice in choices:
        keys = [Key(env_seed=choice.seed, repetition=choice.repetition, arm=arm) for arm in arms]
        episodes = [_episode(read[key]) if key in read else None for key in keys]
        size_bytes += len(orjson.dumps(episodes))
        if size_bytes > MOST_BYTES:
            break
        seeds.append(
            {
                "seed": choice.seed,
                "rep": choice.repetition,
                "kind": choice.kind,
                "played": episodes,
            }
        )
    return {
        "arms": [{"name": arm, "strategy": strategies[arm]} for arm in arms],
        "seeds": seeds,
        "counts": counts,
    }


def _in_turns(groups: Iterable[Sequence[int]]) -> list[int]:
    """Take one of each group after the other."""
    rounds = chain.from_iterable(zip_longest(*groups))
    return [seed for seed in rounds if seed is not None]


def _repetition(arms: Sequence[ArmNumbers], seed: int) -> int:
    """Return the first repetition in which the arms do not all end alike."""
    together = zip(*(arm.success[seed] for arm in arms), strict=False)
    return next((place for place, ends in enumerate(together) if len(set(ends)) > 1), 0)


def _episode(played: Trajectory) -> dict[str, Any]:
    return {
        "won": played.success,
        "scored": played.scored,
        "ret": played.return_,
        "best": played.optimal_turns,
        "stop": played.stop_reason,
        "why": _cut(played.failure_message),
        "final": _cut(played.final_observation),
        "n": len(played.turns),
        "turns": [_turn(turn) for turn in played.turns[:MOST_TURNS]],
    }


def _turn(turn: Turn) -> dict[str, Any]:
    """Return what is shown of a turn; `d` differs where anything seen or said differs."""
    said = f"{turn.prompt_digest}\0{turn.completion}\0{turn.action}"
    facts = {
        "o": _cut(turn.observation),
        "c": _cut(_spoken(turn)),
        "r": _cut(turn.reasoning),
        "a": turn.action and turn.action[:200],
        "k": turn.outcome,
        "w": turn.reward,
        "e": turn.event,
        "x": _cut(turn.error),
        "m": turn.memory,
        "p": turn.prompt_tokens,
        "t": turn.completion_tokens,
        "d": zlib.crc32(said.encode("utf-8", "surrogatepass")),
    }
    return {name: fact for name, fact in facts.items() if fact not in (None, "")}


def _spoken(turn: Turn) -> str:
    """Return the reply without the reasoning that a server sent within it."""
    if turn.reasoning and "</think>" in turn.completion:
        return turn.completion.rpartition("</think>")[2].strip()
    return turn.completion


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= MOST_CHARS:
        return text
    return f"{text[:MOST_CHARS]} … ({len(text) - MOST_CHARS:,} characters more)"
