"""An arm as a log of inspect (`.eval`): a sample per episode, its turns as messages and as calls.

Writes the file that inspect's recorder writes (log version 2), without inspect: a zip of JSON. The
conversation of a sample shows the last message of every prompt and the reply to it; what was sent,
byte for byte, stands in the sample's model events.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Self

import orjson

from evalkit.arms import slug
from evalkit.exchange.played import Played, as_dicts
from evalkit.judge.intervals import clustered_mean
from evalkit.play.parsing import split_reasoning
from evalkit.play.strategies import Messages
from evalkit.record.numbers import ArmNumbers
from evalkit.record.rundir import WholeFile
from evalkit.record.tables import total
from evalkit.record.trajectory import StopReason, Trajectory, Turn

VERSION = 2
"""Of inspect's log format."""
FORMAT = "palaestra-inspect/1"
"""Of what we add to it, in `eval.metadata`."""
STOPS = {"stop": "stop", "length": "max_tokens", "content_filter": "content_filter"}
LIMITS = {StopReason.TRUNCATED: "turn", StopReason.CONTEXT_OVERFLOW: "context"}


def export_inspect(played: Played, folder: Path) -> list[Path]:
    """Write `folder/RUN_ID-ARM.eval` for every arm, `-ARM.2` where two arms make one word.

    Return the files.

    Raises:
        OSError: they cannot be written.

    """
    logs: dict[str, _Log] = {}
    words: Counter[str] = Counter()
    for arm in played.manifest["arms"]:
        word = slug(arm["name"])
        words[word] += 1
        again = f".{words[word]}" if words[word] > 1 else ""
        path = folder / f"{played.run_id}-{word}{again}.eval"
        logs[arm["name"]] = _Log(played, arm, path)
    with ExitStack() as stack:
        for log in logs.values():
            stack.enter_context(log)
        for trajectory in played.trajectories():
            logs[trajectory.key.arm].add(trajectory, played.prompts(trajectory))
    return [log.path for log in logs.values()]


class _Log:
    """One `.eval` file being written."""

    def __init__(self, played: Played, arm: Mapping[str, Any], path: Path) -> None:
        self.path = path
        self._arm, self._manifest = arm, played.manifest
        self._spec = _spec(played.manifest, arm)
        self._summaries: list[dict[str, Any]] = []
        self._numbers = ArmNumbers()

    def __enter__(self) -> Self:
        self._whole = WholeFile(self.path)
        self._raw: IO[bytes] = self._whole.__enter__()
        self._zip = zipfile.ZipFile(self._raw, "w", zipfile.ZIP_DEFLATED)
        plan = {"name": "plan", "steps": [{"solver": self._spec["solver"]}]}
        self._plan = {**plan, "config": self._spec["model_generate_config"]}
        start = {"version": VERSION, "eval": self._spec, "plan": self._plan}
        self._write("_journal/start.json", start)
        return self

    def __exit__(self, *raised: Any) -> None:  # noqa: ANN401 - what every __exit__ is told
        if raised[0] is None:
            self._write("_journal/summaries/1.json", self._summaries)
            self._write("summaries.json", self._summaries)
            self._write("header.json", self._header())
        self._zip.close()
        self._whole.__exit__(*raised)

    def add(self, trajectory: Trajectory, prompts: list[Messages]) -> None:
        """Write an episode's sample."""
        self._numbers.add(trajectory)
        sample = _sample(trajectory, prompts, self._arm, self._manifest)
        self._write(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", sample)
        self._summaries.append(_summary(sample))

    def _write(self, name: str, value: object) -> None:
        entry = zipfile.ZipInfo(name)  # of the year 1980: equal runs give equal bytes
        entry.compress_type = zipfile.ZIP_DEFLATED
        self._zip.writestr(entry, orjson.dumps(value))

    def _header(self) -> dict[str, Any]:
        numbers = self._numbers
        usage = _usage(numbers.prompt_tokens, numbers.completion_tokens)
        return {
            "version": VERSION,
            "status": "success",
            "eval": self._spec,
            "plan": self._plan,
            "results": {
                "total_samples": numbers.stops.total(),
                "completed_samples": numbers.n_ok,
                "scores": [
                    _score("success", "accuracy", numbers.success, numbers.n_error),
                    _score("return", "mean", numbers.return_, numbers.n_error),
                ],
            },
            "stats": {
                "started_at": self._manifest["started_at"],
                "completed_at": self._manifest["finished_at"],
                "model_usage": {self._spec["model"]: usage},
            },
        }


def _spec(manifest: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return what inspect calls the eval: task, model, dataset, settings."""
    config, env = manifest["config"], manifest["env"]
    named = f"{manifest['run_id']}/{arm['name']}"
    sha = manifest["git_sha"]
    return {
        "eval_id": _id("eval", named),
        "run_id": _id("run", manifest["run_id"]),
        "created": manifest["started_at"],
        "task": env["id"],
        "task_id": _id("task", named),
        "task_version": env["version"],
        "task_args": env["params"],
        "task_args_passed": env["params"],
        "solver": arm["strategy"],
        "tags": [arm["name"]],
        "dataset": {
            "name": env["id"],
            "samples": len(config["seeds"]),
            "sample_ids": config["seeds"],
            "shuffled": False,
        },
        "model": arm["model"],
        "model_base_url": arm.get("base_url") or None,
        "model_generate_config": _generate_config(config),
        "config": {"epochs": config["k"]},
        "revision": {"type": "git", "origin": "", "commit": sha} if sha else None,
        "packages": {"palaestra": manifest["evalkit_version"]},
        "metadata": {
            "format": FORMAT,
            "run_id": manifest["run_id"],
            "arm": arm["name"],
            "strategy": arm["strategy"],
            "guided": arm["guided"],
            "env_digest": env["digest"],
        },
        "scorers": [
            {"name": "success", "metrics": [{"name": "accuracy"}, {"name": "stderr"}]},
            {"name": "return", "metrics": [{"name": "mean"}, {"name": "stderr"}]},
        ],
    }


def _generate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: config.get(name) for name in ("temperature", "top_p", "max_tokens")}
    return {name: value for name, value in said.items() if value is not None}


def _sample(
    trajectory: Trajectory,
    prompts: list[Messages],
    arm: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Return an episode as inspect's sample."""
    key, turns = trajectory.key, trajectory.turns
    named = f"{manifest['run_id']}/{key}"
    model, at = arm["model"], manifest["started_at"]
    outputs = [_output(turn, model, named) for turn in turns]
    calls = list(zip(turns, prompts, outputs, strict=True))
    tokens = [total(getattr(turn, f"{side}_tokens") for turn in turns) for side in _SIDES]
    return {
        "id": key.env_seed,
        "epoch": key.repetition + 1,
        "uuid": _id("sample", named),
        "input": turns[0].observation if turns else trajectory.final_observation,
        "target": "",
        "messages": _conversation(prompts, outputs, named),
        "output": outputs[-1] if outputs else {"model": model, "choices": []},
        "scores": _scores(trajectory) if trajectory.scored else None,
        "metadata": _metadata(trajectory),
        "events": [
            _event(prompt, output, model, at, _id("event", f"{named}/{turn.turn}"))
            for turn, prompt, output in calls
        ],
        "model_usage": {model: _usage(*tokens)},
        "turn_count": len(turns),
        **_end(trajectory),
    }


_SIDES = ("prompt", "completion")


def _conversation(
    prompts: list[Messages], outputs: list[dict[str, Any]], named: str
) -> list[dict[str, Any]]:
    """Return one conversation: the system prompt, then what each turn was shown and replied."""
    shown = (
        [{**said, "id": _id("system", named)} for said in as_dicts(prompts[0][:-1])]
        if (prompts)
        else []
    )
    for turn, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        asked = as_dicts(prompt[-1:])[0]
        shown.append({**asked, "id": _id("user", f"{named}/{turn}")})
        shown.append(output["choices"][0]["message"])
    return shown


def _output(turn: Turn, model: str, named: str) -> dict[str, Any]:
    """Return a completion as inspect's model output; what the env made of it is its metadata."""
    content: str | list[dict[str, str]] = turn.completion
    if turn.reasoning and split_reasoning(turn.completion)[1] is None:
        content = [
            {"type": "reasoning", "reasoning": turn.reasoning},
            {"type": "text", "text": turn.completion},
        ]
    made = {
        name: getattr(turn, name)
        for name in ("action", "outcome", "valid", "reward", "event", "error", "policy_version")
    }
    message = {
        "id": _id("assistant", f"{named}/{turn.turn}"),
        "role": "assistant",
        "content": content,
        "source": "generate",
        "model": model,
        "metadata": {name: value for name, value in made.items() if value is not None},
    }
    stop = STOPS.get(turn.finish_reason or "stop", "unknown")
    output = {"model": model, "choices": [{"message": message, "stop_reason": stop}]}
    if turn.prompt_tokens is None and turn.completion_tokens is None:
        return output
    return {**output, "usage": _usage(turn.prompt_tokens, turn.completion_tokens)}


def _event(
    prompt: Messages, output: Mapping[str, Any], model: str, at: str, uuid: str
) -> dict[str, Any]:
    return {
        "event": "model",
        "uuid": uuid,
        "timestamp": at,
        "working_start": 0.0,
        "model": model,
        "input": as_dicts(prompt),
        "tools": [],
        "tool_choice": "none",
        "config": {},
        "output": output,
    }


def _scores(trajectory: Trajectory) -> dict[str, Any]:
    turns = trajectory.turns
    answer = turns[-1].action if turns else None
    said = {"metadata": {"stop_reason": trajectory.stop_reason, "turns": len(turns)}}
    return {
        "success": {"value": "C" if trajectory.success else "I", "answer": answer, **said},
        "return": {"value": trajectory.return_, **said},
    }


def _metadata(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "env_seed": trajectory.key.env_seed,
        "repetition": trajectory.key.repetition,
        "arm": trajectory.key.arm,
        "stop_reason": trajectory.stop_reason,
        "turns": len(trajectory.turns),
        "optimal_turns": trajectory.optimal_turns,
        "final_observation": trajectory.final_observation,
    }


def _end(trajectory: Trajectory) -> dict[str, Any]:
    """Return how the episode ended, where it was cut off or lost."""
    if not trajectory.scored:
        said = trajectory.failure_message or trajectory.stop_reason.value
        error = {"message": f"{trajectory.failure}: {said}", "traceback": "", "traceback_ansi": ""}
        return {"error": error}
    limit = LIMITS.get(trajectory.stop_reason)
    return {"limit": {"type": limit, "limit": len(trajectory.turns)}} if limit else {}


def _summary(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return what inspect lists of a sample."""
    same = ("id", "epoch", "input", "target", "metadata", "scores", "model_usage", "uuid")
    error, limit = sample.get("error"), sample.get("limit")
    return {
        **{name: sample[name] for name in same},
        "error": error["message"] if error else None,
        "limit": limit["type"] if limit else None,
        "completed": True,
        "message_count": len(sample["messages"]),
        "turn_count": sample["turn_count"],
    }


def _score(
    name: str, metric: str, values: Mapping[int, Sequence[float]], n_unscored: int
) -> dict[str, Any]:
    """Return a score's metrics over all episodes; the standard error is clustered by seed."""
    mean = clustered_mean(list(values.values()))
    several = mean.n_clusters > 1
    metrics = {metric: mean.mean} if mean.n else {}
    return {
        "name": name,
        "scorer": name,
        "scored_samples": mean.n,
        "unscored_samples": n_unscored,
        "metrics": {
            each: {"name": each, "value": value}
            for each, value in {**metrics, **({"stderr": mean.se} if several else {})}.items()
        },
    }


def _usage(prompt: int | None, completion: int | None) -> dict[str, int]:
    sent, got = prompt or 0, completion or 0
    return {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got}


def _id(kind: str, named: str) -> str:
    """Name something of a run, as long as inspect's own ids."""
    return blake2b(f"{kind}|{named}".encode(), digest_size=11).hexdigest()
