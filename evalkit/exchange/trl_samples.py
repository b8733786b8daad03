"""A run as samples that TRL's trainers take: JSON lines of conversations.

`sft.jsonl` has a prompt and a completion for every turn. `preference.jsonl` has a pair for every
two episodes of one env seed of which one succeeded and one failed, at the first turn where they
part: the prompt there is the same, the reply of the episode that succeeded is chosen. That this
turn decided is an assumption; later turns may have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby, product
from pathlib import Path
from typing import Any

import orjson

from evalkit.exchange.played import Played, as_dicts
from evalkit.record.rundir import WholeFile
from evalkit.record.trajectory import Trajectory


def export_trl(played: Played, folder: Path, *, only_success: bool = False) -> list[Path]:
    """Write `sft.jsonl` and `preference.jsonl`; return the files.

    `only_success` keeps episodes that failed out of `sft.jsonl`. Episodes that were lost to errors
    are in neither.

    Raises:
        OSError: they cannot be written.

    """
    files = [folder / "sft.jsonl", folder / "preference.jsonl"]
    with ExitStack() as stack:
        sft, preference = (stack.enter_context(WholeFile(path)) for path in files)
        scored = (trajectory for trajectory in played.trajectories() if trajectory.scored)
        for _, same_seed in groupby(scored, key=lambda trajectory: trajectory.key.env_seed):
            episodes = list(same_seed)
            for trajectory in episodes:
                if trajectory.success or not only_success:
                    for sample in _turn_samples(played, trajectory):
                        sft.write(orjson.dumps(sample) + b"\n")
            for pair in _pairs(played, episodes):
                preference.write(orjson.dumps(pair) + b"\n")
    return files


def _turn_samples(played: Played, trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    key = trajectory.key
    for turn, prompt in zip(trajectory.turns, played.prompts(trajectory), strict=True):
        yield {
            "prompt": as_dicts(prompt),
            "completion": _reply(turn.completion),
            "arm": key.arm,
            "env_seed": key.env_seed,
            "repetition": key.repetition,
            "turn": turn.turn,
            "success": trajectory.success,
            "return": trajectory.return_,
            "valid": turn.valid,
        }


def _pairs(played: Played, episodes: list[Trajectory]) -> Iterator[dict[str, Any]]:
    """Yield the preference pairs of one env seed, each once."""
    won = [trajectory for trajectory in episodes if trajectory.success]
    lost = [trajectory for trajectory in episodes if not trajectory.success]
    known: set[tuple[str, str, str]] = set()
    for winner, loser in product(won, lost):
        turn = _parting(winner, loser)
        if turn is None:
            continue
        chosen, rejected = (each.turns[turn] for each in (winner, loser))
        named = (chosen.prompt_digest, chosen.completion, rejected.completion)
        if named not in known:
            known.add(named)
            yield {
                "prompt": as_dicts(played.prompts(winner)[turn]),
                "chosen": _reply(chosen.completion),
                "rejected": _reply(rejected.completion),
                "env_seed": winner.key.env_seed,
                "turn": turn,
                "chosen_arm": winner.key.arm,
                "rejected_arm": loser.key.arm,
            }


def _parting(one: Trajectory, other: Trajectory) -> int | None:
    """Return the first turn of different replies to the same prompt; None where prompts differ."""
    for a, b in zip(one.turns, other.turns, strict=False):
        if a.prompt_digest != b.prompt_digest:
            return None
        if a.completion != b.completion:
            return a.turn
    return None


def _reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
