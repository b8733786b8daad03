"""Logs of inspect as runs, so that `compare` puts our paired tests to them.

A log becomes a run of one arm: its task, dataset and their settings are the env, sample ids the env
seeds, epochs the repetitions. Two logs can be compared when their envs have the same digest, on the
samples that both hold.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from evalkit.arms import slug
from evalkit.errors import BadConfig
from evalkit.exchange.eval_file import EvalFile
from evalkit.exchange.inspect_log import FORMAT
from evalkit.exchange.inspect_samples import NoGrade, Reading, flat_scores
from evalkit.manifest import identities, now, package_version
from evalkit.record.journal import Appender
from evalkit.record.rundir import RunDir, TrajectoryFile
from evalkit.record.trajectory import Key
from evalkit.show.files import write_report

ARM_CHARS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which scores are the success and the return."""

    score: str | None = None
    return_score: str | None = None
    success_at: float = 1.0


def import_logs(files: Sequence[Path], out: Path, wanted: Wanted) -> list[Path]:
    """Make a run of every log, each below `out`, and return their directories.

    Raises:
        BadConfig: one is not a finished log of inspect, its score cannot be read, or two logs of
            one task have different inputs under the same sample id. Nothing is written then.

    """
    logs = [_Log.read(file, wanted) for file in files]
    _require_same_inputs(logs)
    return [log.write(out) for log in logs]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """What a log says, as the run that it becomes."""

    file: Path
    manifest: dict[str, Any]
    lines: tuple[bytes, ...]
    """Its episodes, as lines of trajectories.jsonl."""
    inputs: Mapping[int, str]
    """Digest of what each env seed's sample asks."""

    @classmethod
    def read(cls, file: Path, wanted: Wanted) -> _Log:
        with EvalFile(file) as log:
            if "header.json" not in log:
                raise BadConfig(f"{file} is not finished: finish it with `inspect log recover`")
            try:
                return cls._read(log, log.read("header.json"), wanted)
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                said = f"{type(error).__name__} {error}"
                raise BadConfig(f"{file} is not a log of inspect as known here: {said}") from error

    @classmethod
    def _read(cls, log: EvalFile, header: Mapping[str, Any], wanted: Wanted) -> _Log:
        spec = header["eval"]
        reading = _reading(log, spec, wanted)
        lines: list[bytes] = []
        ids: dict[int, str | int] = {}
        inputs: dict[int, str] = {}
        played: set[Key] = set()
        for sample in log.samples():
            try:
                episode = reading.episode(sample)
            except NoGrade as error:
                raise BadConfig(
                    f"{log.path}: sample {sample['id']}: {error}; choose another --score"
                ) from error
            seed = episode.key.env_seed
            if ids.setdefault(seed, sample["id"]) != sample["id"]:
                raise BadConfig(f"{log.path}: {ids[seed]!r} and {sample['id']!r} are one sample id")
            said = _digest(sample["input"])
            if inputs.setdefault(seed, said) != said:
                raise BadConfig(f"{log.path}: sample {ids[seed]!r} asks something else each epoch")
            if episode.key in played:
                raise BadConfig(
                    f"{log.path} holds sample {sample['id']!r} of epoch {sample['epoch']} twice"
                )
            played.add(episode.key)
            lines.append(episode.to_json())
        if not lines:
            raise BadConfig(f"{log.path} holds no sample")
        k = 1 + max(key.repetition for key in played)
        manifest = _manifest(log.path, header, reading, ids, k)
        return cls(file=log.path, manifest=manifest, lines=tuple(lines), inputs=inputs)

    def write(self, out: Path) -> Path:
        """Make the run's directory, with its tables."""
        rundir = RunDir.create(out, self.manifest["run_id"], self.manifest)
        with Appender(rundir.trajectories_path) as trajectories:
            for line in self.lines:
                trajectories.write(line)
        TrajectoryFile(rundir.trajectories_path).arrange()
        write_report(rundir, identities(self.manifest), {})
        return rundir.path


def _reading(log: EvalFile, spec: Mapping[str, Any], wanted: Wanted) -> Reading:
    """Choose the scores: what is asked for, else `success` or the only one there is."""
    names = list(
        dict.fromkeys(
            name
            for summary in log.read("summaries.json")
            for name, _ in flat_scores(summary.get("scores"))
        )
    )
    score = wanted.score
    if score is None:
        score = "success" if "success" in names else names[0] if len(names) == 1 else None
    known = ", ".join(names) or "none"
    if score is None:
        raise BadConfig(f"{log.path} has {len(names)} scores ({known}): choose one by --score")
    return_score = wanted.return_score or ("return" if "return" in names else score)
    for name in (score, return_score):
        if name not in names:
            raise BadConfig(f"{log.path} has no score {name!r}; it has {known}")
    return Reading(
        arm=slug(spec["model"])[:ARM_CHARS] or "model",
        model=spec["model"],
        score=score,
        return_score=return_score,
        success_at=wanted.success_at,
    )


def _manifest(
    file: Path,
    header: Mapping[str, Any],
    reading: Reading,
    ids: Mapping[int, str | int],
    k: int,
) -> dict[str, Any]:
    """Return the manifest of a log as a run."""
    spec, stats = header["eval"], header.get("stats") or {}
    env, arm = _env(spec), _arm(spec, reading)
    config = _config(env, arm, sorted(ids), k)
    named = _digest([spec["eval_id"], spec["task_id"], reading.score, reading.success_at])[:8]
    return {
        "run_id": f"{slug(env['id'])}-{reading.arm}-{named}",
        "config": config,
        "config_digest": _digest(config)[:8],
        "env": env,
        "policy": None,
        "arms": [arm],
        "evalkit_version": package_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_sha": (spec.get("revision") or {}).get("commit", ""),
        "started_at": stats.get("started_at") or spec["created"],
        "finished_at": stats.get("completed_at") or now(),
        "references": [],
        "imported": {
            "file": file.name,
            "status": header["status"],
            "eval_id": spec["eval_id"],
            "score": reading.score,
            "return_score": reading.return_score,
            "success_at": reading.success_at,
            "sample_ids": {str(seed): each for seed, each in ids.items() if seed != each},
        },
    }


def _arm(spec: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    return {
        "name": reading.arm,
        "strategy": spec.get("solver") or "inspect",
        "guided": False,
        "host": "",
        "model": spec["model"],
        "base_url": spec.get("model_base_url") or "",
        "server_version": "",
        "max_model_len": None,
        "request": spec.get("model_generate_config") or {},
    }


def _config(
    env: Mapping[str, Any], arm: Mapping[str, Any], seeds: list[int], k: int
) -> dict[str, Any]:
    """Return what stands for the settings of the run."""
    return {
        "model": [arm["model"]],
        "env": env["id"],
        "env_args": env["params"],
        "strategy": [arm["strategy"]],
        "guided": [False],
        "seeds": seeds,
        "k": k,
        "temperature": arm["request"].get("temperature"),
        "top_p": arm["request"].get("top_p"),
        "max_tokens": arm["request"].get("max_tokens"),
        "run_seed": 0,
    }


def _env(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands for the env: task and dataset. Logs that we exported keep their env."""
    ours = spec.get("metadata") or {}
    version, params = spec.get("task_version", 0), spec.get("task_args") or {}
    dataset = (spec.get("dataset") or {}).get("name")
    digest = _digest([spec["task"], version, params, dataset])[:16]
    if ours.get("format") == FORMAT:
        digest = ours["env_digest"]
    return {"id": spec["task"], "version": version, "digest": digest, "params": params}


def _require_same_inputs(logs: Sequence[_Log]) -> None:
    """Raise BadConfig where logs of one task ask different things under the same sample id."""
    known: dict[tuple[str, int], tuple[str, Path]] = {}
    for log in logs:
        env = log.manifest["env"]["digest"]
        for seed, said in log.inputs.items():
            first, file = known.setdefault((env, seed), (said, log.file))
            if first != said:
                ids = log.manifest["imported"]["sample_ids"]
                raise BadConfig(
                    f"sample {ids.get(str(seed), seed)!r} of {log.file} has another input than in "
                    f"{file}: they are not the same samples, so they cannot be paired"
                )


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
