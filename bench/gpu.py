"""Gateway, evalkit and GRPO on whatever device is there, in one go.

    python bench/gpu.py [--config FILE] [--steps 20] [--episodes 200] [--set A.B=C]
        [--out results/bench_gpu.json]

Starts one gateway with vLLM behind it and keeps it. First plain load (short completions, 64 at
once), then an evaluation, N steps of GRPO through the same gateway, and the same evaluation again,
on the same seeds, which training never uses. Prints a table with the comparison of both, and writes
it, with the device, the versions and the commit, to a file.

On a GPU it is train/configs/key_door_smollm2_lora.yaml that is trained, without one
key_door_tiny.yaml; there the engine has the first half of the cores and the trainer the rest. So
far this was run without a GPU only: what it would start on one is held by unit tests.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

# As a script, this folder would be searched first, and its evalkit.py is not the package.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from evalkit.play.proxied import open_transport  # noqa: E402
from evalkit.play.transport import TransportError  # noqa: E402
from evalkit.record.rundir import RunDir  # noqa: E402
from train import children, cores  # noqa: E402
from train.config import TrainConfig, load, parse_setting  # noqa: E402
from train.errors import TrainError  # noqa: E402
from train.gateway import OwnGateway, serve_command  # noqa: E402
from train.preflight import git_sha, versions  # noqa: E402
from train.track.metrics import read_metrics  # noqa: E402

FORMAT = "bench-gpu/1"
CONFIGS = HERE.parent / "train" / "configs"
CONNECTIONS = 64
WARM_UP_S = 2.0
LOAD_S = 8.0
COMPLETION_TOKENS = 8
WARM_UP_STEPS = 2
"""Steps whose times do not count, where there are more."""
GRACE_S = 30.0
_TIMEOUT_S = 120.0


class Failed(Exception):
    """A part of the measurement ended with an error; it has said which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the gateway and its engine do for plain short completions."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One run of evalkit, from its first call to its last."""

    turns: int
    turns_per_s: float
    success: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """GRPO's steps that count."""

    steps: int
    step_s: float
    """The median; of those below likewise."""
    shortest_s: float
    longest_s: float
    wait_s: float
    """For rollouts."""
    learn_s: float
    sync_s: float | None
    idle_share: float
    """Of all the time, waiting for rollouts."""
    tokens_per_s: float
    """Sampled tokens that were trained on, over all the time."""
    gap_max: float | None
    """Largest difference of the trainer's logprob from the sampler's, same weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Success after training less that before, over the same seeds."""

    diff: float
    low: float | None
    high: float | None


def main() -> int:
    """Measure everything; print the table and write the file."""
    options = _options()
    gpu = cores.has_gpu()
    load_1m = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
            told = measure(config_of(options, gpu), options, Path(folder), gpu)
    except (Failed, TrainError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    about = {
        "format": FORMAT,
        "device": device(gpu),
        "load_average_before": load_1m,
        "commit": git_sha(),
        "versions": versions(),
        "config": Path(options.config or default_config(gpu)).name,
        "settings": options.set,
        "steps": options.steps,
        "episodes": options.episodes,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: asdict(part) for name, part in told.items()}
    options.out.write_text(json.dumps(about | parts, indent=2) + "\n", "utf-8")
    print(f"{about['device']}, {about['config']}, commit {about['commit'][:7]}\n")
    print("\n".join(table(told)))
    return 0


def measure(
    config: TrainConfig, options: argparse.Namespace, folder: Path, gpu: bool
) -> dict[str, Any]:
    """Measure the parts one after the other, all through one gateway."""
    place = cores.place(config, cores=cores.here(), gpu=gpu, environment=os.environ)
    gateway = OwnGateway(
        serve_command(config, folder / "state"),
        log=folder / "gateway.log",
        env=os.environ | dict(place.gateway),
    )
    gateway.start()
    try:
        gateway.wait_ready(config.gateway.wait_s, _say)
        url, name = gateway.url, name_of(config)
        _say(f"load: {CONNECTIONS} at once for {WARM_UP_S + LOAD_S:.0f} s")
        plain = asyncio.run(load_of(url, name))
        before = _evaluated(evaluation(config, url, options.episodes, folder / "before"))
        words = training(options, config, url, gpu, folder / "runs")
        _run(words, os.environ | dict(place.learner), place.learner_cores)
        (run,) = (folder / "runs").glob("grpo_*")
        steps = summarize(read_metrics(run / "metrics.csv"))
        after = _evaluated(evaluation(config, url, options.episodes, folder / "after"))
    finally:
        gateway.stop()
    learned = _compared(folder)
    return {"load": plain, "before": before, "grpo": steps, "after": after, "learned": learned}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--config", type=Path, help="of training; default: by the device, see above")
    add("--steps", type=int, default=20, help=f"of GRPO; the first {WARM_UP_STEPS} do not count")
    add("--episodes", type=int, default=200, help="of each evaluation")
    add("--set", action="append", default=[], metavar="A.B=C", help="any setting of training")
    add("--out", type=Path, default=Path("results/bench_gpu.json"))
    options = parser.parse_args()
    if options.steps < 1 or options.episodes < 1:
        parser.error("expected at least one step and one episode")
    return options


def default_config(gpu: bool) -> Path:
    """Return what is trained where nothing else is asked for."""
    return CONFIGS / ("key_door_smollm2_lora.yaml" if gpu else "key_door_tiny.yaml")


def config_of(options: argparse.Namespace, gpu: bool) -> TrainConfig:
    """Return the config that is trained, with a gateway of its own: ours."""
    settings = dict(parse_setting(text) for text in options.set)
    fixed = {"gateway.url": None, "learn.steps": options.steps}
    return load(options.config or default_config(gpu), settings | fixed)


def name_of(config: TrainConfig) -> str:
    """Return what requests call the model."""
    return config.model.name or Path(config.model.path).name


def evaluation(config: TrainConfig, url: str, episodes: int, out: Path) -> list[str]:
    """Return the command line that plays the env as training plays it, on seeds from 0 on."""
    rollouts = config.rollouts
    words = [sys.executable, "-m", "evalkit", "--model", f"{url}#{name_of(config)}"]
    words += ["--env", config.env.name]
    for key, value in config.env.args.items():
        words += ["--env-arg", f"{key}={json.dumps(value)}"]
    words += ["--strategy", rollouts.strategy, "--max-tokens", str(rollouts.max_tokens)]
    words += ["--temperature", str(rollouts.temperature), "--top-p", str(rollouts.top_p)]
    words += ["-n", str(episodes), "-c", str(rollouts.concurrency), "--out", str(out)]
    return words


def training(
    options: argparse.Namespace, config: TrainConfig, url: str, gpu: bool, out: Path
) -> list[str]:
    """Return the command line that trains through the gateway."""
    words = [sys.executable, "-m", "train", "grpo"]
    words += ["--config", str(options.config or default_config(gpu))]
    words += ["--url", url, "--steps", str(options.steps), "--out", str(out)]
    fixed = [f"model.name={name_of(config)}", f"gateway.url={url}", f"learn.steps={options.steps}"]
    return words + [word for text in [*options.set, *fixed] for word in ("--set", text)]


async def load_of(
    url: str,
    name: str,
    *,
    connections: int = CONNECTIONS,
    warm_up_s: float = WARM_UP_S,
    load_s: float = LOAD_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Load:
    """Ask for short completions all the time; count those that end after the warm-up."""
    asked = {"model": name, "prompt": [5, 6, 7, 8], "max_tokens": COMPLETION_TOKENS}
    body = json.dumps(asked | {"ignore_eos": True}).encode()
    took_ms: list[float] = []
    failed = 0
    begins_s = clock() + warm_up_s
    ends_s = begins_s + load_s

    async def ask() -> None:
        nonlocal failed
        while (started_s := clock()) < ends_s:
            try:
                answer = await transport.post("/v1/completions", body, timeout_s=_TIMEOUT_S)
                is_good = answer.status == 200
            except TransportError:
                is_good = False
            if begins_s <= (now_s := clock()) <= ends_s:
                failed += not is_good
                if is_good:
                    took_ms.append(1000 * (now_s - started_s))

    async with open_transport(url.removesuffix("/v1")) as transport, asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(ask())
    if not took_ms:
        raise Failed(f"no completion of {name} at {url} ended well, {failed} failed")
    took_ms.sort()
    return Load(
        requests_per_s=len(took_ms) / load_s,
        p50_ms=took_ms[len(took_ms) // 2],
        p99_ms=took_ms[len(took_ms) * 99 // 100],
        failed=failed,
    )


def summarize(rows: Sequence[Mapping[str, str]]) -> Steps:
    """Return the numbers of a metrics.csv; the first steps do not count where there are more."""
    kept = rows[min(WARM_UP_STEPS, len(rows) - 1) :]

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in kept if row[name] != ""]

    step_s, sync_s, gap_max = column("step_s"), column("sync_s"), column("gap_max")
    return Steps(
        steps=len(kept),
        step_s=median(step_s),
        shortest_s=min(step_s),
        longest_s=max(step_s),
        wait_s=median(column("wait_s")),
        learn_s=median(column("learn_s")),
        sync_s=median(sync_s) if sync_s else None,
        idle_share=sum(column("wait_s")) / sum(step_s),
        tokens_per_s=sum(column("tokens_trained")) / sum(step_s),
        gap_max=max(gap_max) if gap_max else None,
    )


def table(told: Mapping[str, Any]) -> list[str]:
    """Return the table of all parts."""
    plain, steps, learned = told["load"], told["grpo"], told["learned"]
    rows = [
        (f"gateway: short completions/s, {CONNECTIONS} at once", f"{plain.requests_per_s:,.1f}"),
        ("their latency, p50 and p99", f"{plain.p50_ms:,.0f} and {plain.p99_ms:,.0f} ms"),
        ("failed", f"{plain.failed}"),
        ("evalkit: turns/s, before and after", _both(told, "turns_per_s", ",.1f")),
        ("turns, before and after", _both(told, "turns", ",")),
        (
            f"GRPO: s/step, median of {steps.steps} (min..max)",
            f"{steps.step_s:.2f} ({steps.shortest_s:.2f}..{steps.longest_s:.2f})",
        ),
        ("of it waiting, learning", f"{steps.wait_s:.2f}, {steps.learn_s:.2f}"),
        ("sync until it is live, s", "" if steps.sync_s is None else f"{steps.sync_s:.2f}"),
        ("trainer idle", f"{steps.idle_share:.0%}"),
        ("trained tokens/s", f"{steps.tokens_per_s:,.0f}"),
        (
            "largest gap of a logprob, nats",
            "" if steps.gap_max is None else f"{steps.gap_max:.1e}",
        ),
        ("learning: success, before and after", _both(told, "success", ".1%")),
        ("difference, 95 % CI, points", _points(learned)),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _both(told: Mapping[str, Any], name: str, form: str) -> str:
    return f"{getattr(told['before'], name):{form}}, {getattr(told['after'], name):{form}}"


def _points(learned: Learned) -> str:
    if learned.low is None or learned.high is None:
        return f"{100 * learned.diff:+.1f}"
    return f"{100 * learned.diff:+.1f} ({100 * learned.low:+.1f}..{100 * learned.high:+.1f})"


def device(gpu: bool) -> str:
    """Say what it was measured on."""
    count = len(cores.here())
    if not gpu:
        return f"{count} cores, no GPU"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return f"a GPU that nvidia-smi does not name, {count} cores"
    return f"{', '.join(said.split(chr(10))).strip(', ')}, {count} cores"


def _evaluated(words: Sequence[str]) -> Evaluation:
    """Play, and return what evalkit wrote down; its own start does not count."""
    out = Path(words[-1])
    _say(f"python {' '.join(words[1:])}")
    child = children.spawn(
        words, env=os.environ, death_signal=signal.SIGTERM, output=sys.stderr.buffer
    )
    while child.poll() is None and not list(out.glob("*/journal.jsonl")):
        time.sleep(0.01)
    began_s = time.time()
    if child.wait():
        raise Failed(f"evalkit ended with {children.describe(child.returncode)}")
    (run,) = map(RunDir, out.iterdir())
    (row,) = _rows(run.path / "performance.csv")
    (found,) = _rows(run.path / "summary.csv")
    turns = int(row["calls"])
    return Evaluation(
        turns=turns,
        turns_per_s=turns / (run.journal_path.stat().st_mtime - began_s),
        success=float(found["success_rate"]),
    )


def _compared(folder: Path) -> Learned:
    (before,), (after,) = ((folder / name).iterdir() for name in ("before", "after"))
    words = [sys.executable, "-m", "evalkit", "compare", str(before), str(after)]
    _run([*words, "--names", "before,after", "--out", str(folder / "compare")], os.environ, None)
    rows = _rows(folder / "compare" / "compare.csv")
    row = next(row for row in rows if row["metric"] == "success")
    low, high = (float(row[name]) if row[name] else None for name in ("lo", "hi"))
    return Learned(diff=float(row["diff"]), low=low, high=high)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _run(words: Sequence[str], env: Mapping[str, str], on: frozenset[int] | None) -> None:
    _say(f"python {' '.join(words[1:])}")
    child = children.spawn(
        words, env=env, death_signal=signal.SIGTERM, output=sys.stderr.buffer, cores=on
    )
    try:
        code = child.wait()
    finally:
        children.stop(child, GRACE_S)
    if code:
        raise Failed(f"{' '.join(words[1:4])} ended with {children.describe(code)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
