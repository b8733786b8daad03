"""A run as two parquet tables, and the same as a data set of Hugging Face.

`episodes.parquet` has a row per episode, `turns.parquet` a row per completion, with its texts: the
exact prompt as messages, what was shown, the raw reply. The only door to pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from evalkit.errors import BadConfig
from evalkit.exchange.played import Played, as_dicts
from evalkit.play.strategies import Messages
from evalkit.record.rundir import WholeFile, write_whole
from evalkit.record.trajectory import Outcome, Trajectory

BATCH_ROWS = 2_000
KEY = {"format": "string", "run_id": "string", "arm": "string", "env_seed": "int64"}
EPISODES = {
    **KEY,
    "repetition": "int64",
    "scored": "bool_",
    "success": "bool_",
    "return": "float64",
    "turns": "int64",
    "optimal_turns": "int64",
    "stop_reason": "string",
    "failure": "string",
    "failure_message": "string",
    "valid_actions": "int64",
    **{outcome.value: "int64" for outcome in Outcome},
    "final_observation": "string",
}
TURNS = {
    **KEY,
    "repetition": "int64",
    "turn": "int64",
    "observation": "string",
    "completion": "string",
    "reasoning": "string",
    "action": "string",
    "outcome": "string",
    "valid": "bool_",
    "reward": "float64",
    "event": "string",
    "error": "string",
    "memory": "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "request_seed": "int64",
    "prompt_digest": "string",
    "policy_version": "string",
}
"""Columns and their types in pyarrow; turns have `prompt` besides, a list of messages."""
CARD = """\
---
pretty_name: {run_id}
tags: [reinforcement-learning, evaluation, palaestra]
configs:
- config_name: episodes
  data_files: episodes.parquet
- config_name: turns
  data_files: turns.parquet
---
# {run_id}

{n_episodes} episodes of the env `{env}` (version {version}, digest `{digest}`), played by evalkit.

| arm | model | strategy |
|---|---|---|
{arms}

`episodes` has a row per episode, `turns` a row per completion: `prompt` holds the messages exactly
as they were sent, `completion` the raw reply. `success` and `return` are null where an episode was
lost to an error (`scored` is false). Rows of the same `env_seed` and `repetition` are paired.

```python
from datasets import load_dataset

turns = load_dataset("PATH", "turns", split="train")
```
"""


def export_parquet(played: Played, folder: Path) -> list[Path]:
    """Write `episodes.parquet` and `turns.parquet`; return the files.

    Raises:
        BadConfig: pyarrow is not installed.
        OSError: they cannot be written.

    """
    arrow = pyarrow()
    files = [folder / "episodes.parquet", folder / "turns.parquet"]
    with ExitStack() as stack:
        episodes, turns = (
            stack.enter_context(_Table(arrow, path, schema))
            for path, schema in zip(files, _schemas(arrow), strict=True)
        )
        for trajectory in played.trajectories():
            episodes.add(_episode(played.run_id, trajectory))
            for row in _turns(played.run_id, trajectory, played.prompts(trajectory)):
                turns.add(row)
    return files


def export_hf(played: Played, folder: Path) -> list[Path]:
    """Write the tables and the card that makes `datasets.load_dataset(folder)` find them."""
    files = export_parquet(played, folder)
    manifest = played.manifest
    arms = [f"| {arm['name']} | {arm['model']} | {arm['strategy']} |" for arm in manifest["arms"]]
    card = CARD.format(
        run_id=played.run_id,
        n_episodes=pyarrow().parquet.read_metadata(files[0]).num_rows,
        env=manifest["env"]["id"],
        version=manifest["env"]["version"],
        digest=manifest["env"]["digest"],
        arms="\n".join(arms),
    )
    write_whole(folder / "README.md", card.encode())
    return [folder / "README.md", *files]


def pyarrow() -> Any:  # noqa: ANN401 - the module
    """Import pyarrow, with parquet.

    Raises:
        BadConfig: it is not installed.

    """
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise BadConfig("this needs the package pyarrow: install palaestra[exchange]") from error


def _schemas(arrow: Any) -> tuple[Any, Any]:  # noqa: ANN401 - pyarrow's own
    """Return the schema of both tables."""
    message = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
    episodes, turns = (
        [(name, getattr(arrow, kind)()) for name, kind in columns.items()]
        for columns in (EPISODES, TURNS)
    )
    return arrow.schema(episodes), arrow.schema([*turns, ("prompt", arrow.list_(message))])


class _Table:
    """A parquet file that gets its rows one at a time."""

    def __init__(self, arrow: Any, path: Path, schema: Any) -> None:  # noqa: ANN401
        self._arrow, self._path, self._schema = arrow, path, schema
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> _Table:
        self._whole = WholeFile(self._path)
        file = self._whole.__enter__()
        self._writer = self._arrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        return self

    def __exit__(self, *raised: Any) -> None:  # noqa: ANN401 - what every __exit__ is told
        if raised[0] is None:
            self._flush()
        self._writer.close()
        self._whole.__exit__(*raised)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
            self._rows = []


def _episode(run_id: str, trajectory: Trajectory) -> dict[str, Any]:
    turns, scored = trajectory.turns, trajectory.scored
    outcomes = [turn.outcome for turn in turns]
    return {
        **_key("episodes/1", run_id, trajectory),
        "scored": scored,
        "success": trajectory.success if scored else None,
        "return": trajectory.return_ if scored else None,
        "turns": len(turns),
        "optimal_turns": trajectory.optimal_turns,
        "stop_reason": trajectory.stop_reason,
        "failure": trajectory.failure,
        "failure_message": trajectory.failure_message,
        "valid_actions": sum(turn.valid for turn in turns),
        **{outcome.value: outcomes.count(outcome) for outcome in Outcome},
        "final_observation": trajectory.final_observation,
    }


def _turns(
    run_id: str, trajectory: Trajectory, prompts: list[Messages]
) -> Iterator[dict[str, Any]]:
    for turn, prompt in zip(trajectory.turns, prompts, strict=True):
        own = {name: getattr(turn, name) for name in TURNS if name not in {*KEY, "repetition"}}
        yield {**_key("turns/1", run_id, trajectory), **own, "prompt": as_dicts(prompt)}


def _key(format_: str, run_id: str, trajectory: Trajectory) -> dict[str, Any]:
    key = trajectory.key
    return {
        "format": format_,
        "run_id": run_id,
        "arm": key.arm,
        "env_seed": key.env_seed,
        "repetition": key.repetition,
    }
