"""What is run by inspect's own Python: writes logs with its mock model, and reads logs.

`python inspect_side.py write FOLDER` makes good.eval and bad.eval; `python inspect_side.py read
FILE` prints what inspect sees in a log, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import Score, Target, accuracy, match, mean, scorer
from inspect_ai.solver import TaskState, generate, system_message

IDS = [1, "sum-2", 3, "sum-4"]


@scorer(metrics={"success": [accuracy()], "points": [mean()]})  # type: ignore[untyped-decorator]
def partial() -> Any:
    """Score twice: right or wrong, and points."""

    async def score(state: TaskState, target: Target) -> Any:
        right = state.output.completion.strip() == target.text
        return Score(value={"success": "C" if right else "I", "points": 0.5 if right else -0.25})

    return score


@task  # type: ignore[untyped-decorator]
def sums() -> Any:
    """Four sums."""
    samples = [
        Sample(input=f"What is {n}+{n}?", target=str(2 * n), id=id_)
        for n, id_ in enumerate(IDS, start=1)
    ]
    return Task(
        dataset=MemoryDataset(samples, name="sums"),
        solver=[system_message("Be brief."), generate()],
        scorer=[match(), partial()],
    )


def output(name: str, text: str) -> Any:
    """Return a reply with its tokens: without them inspect would fetch a tokenizer."""
    made = ModelOutput.from_content(f"mockllm/{name}", text)
    made.usage = ModelUsage(
        input_tokens=20,
        output_tokens=len(text),
        total_tokens=25 + len(text),
        input_tokens_cache_read=5,
    )
    return made


def write(folder: Path) -> None:
    """Play the sums twice by each of two models; the bad one knows the first two only."""
    right = [str(2 * n) for n in range(1, 5)]
    replies = {"good": right, "bad": [*right[:2], "none", "none"]}
    for name, texts in replies.items():
        outputs = [output(name, text) for text in texts * 2]
        model = get_model(f"mockllm/{name}", custom_outputs=outputs, memoize=False)
        logs = evaluate(
            sums(),
            model=model,
            log_dir=str(folder),
            log_format="eval",
            epochs=2,
            max_samples=1,
            display="none",
        )
        Path(logs[0].location.removeprefix("file://")).rename(folder / f"{name}.eval")


def read(file: Path) -> None:
    """Print what inspect reads."""
    log = read_eval_log(str(file))
    assert log.results is not None
    assert log.samples is not None
    seen = {
        "status": log.status,
        "task": log.eval.task,
        "model": log.eval.model,
        "epochs": log.eval.config.epochs,
        "metrics": {
            score.name: {name: metric.value for name, metric in score.metrics.items()}
            for score in log.results.scores
        },
        "usage": {name: usage.total_tokens for name, usage in log.stats.model_usage.items()},
        "summaries": len(read_eval_log_sample_summaries(str(file))),
        "samples": [
            {
                "id": sample.id,
                "epoch": sample.epoch,
                "scores": {name: score.value for name, score in (sample.scores or {}).items()},
                "error": sample.error.message if sample.error else None,
                "limit": sample.limit.type if sample.limit else None,
                "messages": [[message.role, message.text] for message in sample.messages],
                "prompts": [
                    [[message.role, message.text] for message in event.input]
                    for event in sample.events
                    if event.event == "model"
                ],
            }
            for sample in log.samples
        ],
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]).resolve())
    else:
        read(Path(sys.argv[2]))
