"""metrics.csv: one row per optimizer step, and what the columns mean.

The first column names the format. A run that is resumed at a step drops the rows beyond it, so no
step is counted twice.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.judge.intervals import wilson_clustered
from train.errors import BadConfig, SaveFailed
from train.rollouts.rows import Group, Row

FORMAT = "train-metrics/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What is told of one optimizer step: the columns of metrics.csv. None is not known."""

    step: int
    """From 1 on."""
    version: int | None = None
    """What is live after the step."""
    episodes: int | None = None
    groups: int | None = None
    flat_groups: int | None = None
    """Groups whose rewards are all equal."""
    return_mean: float | None = None
    """The env's own return, per episode."""
    reward_mean: float | None = None
    """What training was told, per episode."""
    success: float | None = None
    success_lo: float | None = None
    """Wilson's 95 % interval, with the env seed as the cluster."""
    success_hi: float | None = None
    turns_mean: float | None = None
    rows: int | None = None
    tokens_trained: int | None = None
    """Tokens that the policy sampled."""
    tokens_forwarded: int | None = None
    """All tokens of the rows."""
    loss: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    entropy: float | None = None
    ratio_mean: float | None = None
    ratio_max: float | None = None
    clip_low: float | None = None
    """Share of tokens that were clipped from below."""
    clip_high: float | None = None
    kl: float | None = None
    gap_mean: float | None = None
    """Trainer's logprob less the sampler's, absolute, on tokens of the current version."""
    gap_max: float | None = None
    weight_mean: float | None = None
    """Of the importance correction."""
    staleness_mean: float | None = None
    """Versions behind, per trained token."""
    staleness_max: float | None = None
    mixed_rows: int | None = None
    """Rows whose tokens were sampled by more than one version."""
    step_s: float | None = None
    wait_s: float | None = None
    """For rollouts."""
    learn_s: float | None = None
    """Forward, backward and the optimizer."""
    sync_s: float | None = None
    """Until the new version was live."""
    probe_gap: float | None = None
    """Largest difference of a replica's logprob from the trainer's on the probes."""
    dropped: int | None = None
    """Episodes that could not be scored."""
    replayed: int | None = None
    """Groups that were played again."""
    tokens_per_s: float | None = None
    """Trained tokens per second of the step."""
    idle_share: float | None = None
    """Share of the step that the trainer waited for rollouts."""
    wall_s: float | None = None
    """Since the run began."""


COLUMNS = tuple(column.name for column in fields(StepMetrics))


def of_groups(
    groups: Sequence[Group], version: int, order: Callable[[int], int] = lambda version: version
) -> dict[str, Any]:
    """Return the columns that the groups of a step tell by themselves.

    `version` is the one whose weights are trained on; staleness is counted from it. `order` says
    the how-manieth of the run a version is, where the numbers themselves have gaps.
    """
    episodes = [episode for group in groups for episode in group.episodes]
    rows = [row for episode in episodes for row in episode.rows]
    won = [sum(episode.success for episode in group.episodes) for group in groups]
    interval = wilson_clustered(won, [len(group.episodes) for group in groups])
    sampled = [row.versions[row.trained == 1] for row in rows]
    versions, which = np.unique(
        np.concatenate([np.empty(0, np.int32), *sampled]), return_inverse=True
    )
    ages = [order(version) - order(int(each)) for each in versions]
    behind = np.array(ages, np.int32)[which]
    return {
        "episodes": len(episodes),
        "groups": len(groups),
        "flat_groups": sum(group.is_flat for group in groups),
        "return_mean": _mean(episode.env_return for episode in episodes),
        "reward_mean": _mean(episode.reward for episode in episodes),
        "success": _mean(float(episode.success) for episode in episodes),
        "success_lo": interval.lo,
        "success_hi": interval.hi,
        "turns_mean": _mean(float(episode.turns) for episode in episodes),
        "rows": len(rows),
        "tokens_trained": int(behind.size),
        "tokens_forwarded": sum(len(row.ids) for row in rows),
        "staleness_mean": float(behind.mean()) if behind.size else None,
        "staleness_max": float(behind.max()) if behind.size else None,
        "mixed_rows": sum(map(_is_mixed, rows)),
        "dropped": sum(group.dropped for group in groups),
    }


class MetricsFile:
    """metrics.csv, open for the steps after one that is known to be complete."""

    def __init__(self, path: Path, *, after_step: int, columns: Sequence[str] = COLUMNS) -> None:
        """Open or make the file. Rows beyond `after_step` are dropped; 0 begins anew.

        Raises:
            BadConfig: there is a file, and it is not one of these.
            SaveFailed: it cannot be written.

        """
        self._path = path
        self._columns = tuple(columns)
        rows = [row for row in read_metrics(path) if int(row["step"]) <= after_step]
        kept = {int(row["step"]): row for row in rows}
        self._last = max(kept, default=0)
        head = _line(("schema", *self._columns))
        body = "".join(self._row(kept[step]) for step in sorted(kept))
        try:
            _replace(path, head + body)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise SaveFailed(f"cannot write {path}: {error}") from error

    @property
    def last_step(self) -> int:
        """The step of the newest row; 0 without one."""
        return self._last

    def step(self, metrics: StepMetrics) -> None:
        """Append a row; raise SaveFailed, the file being as it was, if the disk does not take it.

        Raises ValueError for a step that is there already.
        """
        if metrics.step <= self._last:
            raise ValueError(f"step {metrics.step} comes after {self._last}: it would count twice")
        line = self._row(asdict(metrics)).encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes were written")
        except OSError as error:
            self._file.truncate(end)
            raise SaveFailed(
                f"cannot write step {metrics.step} to {self._path}: {error}; "
                "make room, then go on with --resume"
            ) from error
        self._last = metrics.step

    def close(self) -> None:
        """Close the file; harmless the second time."""
        self._file.close()

    def _row(self, row: Mapping[str, Any]) -> str:
        return _line((FORMAT, *(_cell(row.get(column)) for column in self._columns)))


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows as texts by column; a torn last line is none. No file has no rows.

    Raises:
        BadConfig: it is not a file of this format.

    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadConfig(f"cannot read {path}: {error}") from error
    whole = text[: text.rfind(b"\n") + 1].decode("utf-8", "replace")
    head, *lines = csv.reader(io.StringIO(whole, newline="")) if whole else [[]]
    if head and head[:2] != ["schema", "step"]:
        raise BadConfig(f"{path} is not a file of {FORMAT}: it begins with {','.join(head[:2])!r}")
    for number, cells in enumerate(lines, 2):
        if cells[:1] != [FORMAT] or len(cells) != len(head) or not cells[1].isdigit():
            raise BadConfig(f"{path}, line {number}: expected a row of {FORMAT}; remove the line")
    return [dict(zip(head, cells, strict=True)) for cells in lines]


def _replace(path: Path, text: str) -> None:
    """Replace a file in one step: a crash leaves the old one or the new one."""
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _line(cells: Iterable[object]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else value


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def _is_mixed(row: Row) -> bool:
    return len(np.unique(row.versions[row.trained == 1])) > 1
