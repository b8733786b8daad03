"""One of several trainer processes on given groups: `python -m ... several ORDER.json`.

An order names a checkpoint, a folder, cases (settings of a run each), and whether to shard the
weights by FSDP2 as is done on GPUs. The main process writes `CASE.safetensors`, the weights that
were published last, and `CASE.json`, what was logged.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

warnings.simplefilter("ignore")

from tests.unit.train.learner import test_grpo as one  # noqa: E402
from train.learner import session  # noqa: E402
from train.learner.steps import Steps  # noqa: E402
from train.publish import processes  # noqa: E402


def shard_on_cpu() -> None:
    """Let accelerate believe that gloo joins GPUs: it shards nowhere else, though torch can."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState()


def case(order: dict[str, Any], name: str, told: dict[str, Any]) -> None:
    """Train one run, and write what came of it."""
    out = Path(order["out"]) / name
    told = dict(told)
    peft = one.LORA if told.pop("lora", False) else None
    resume, first = told.pop("resume", None), told.pop("first", 1)
    checkpoint = Path(order["checkpoint"])
    groups = one.sampled_by(AutoModelForCausalLM.from_pretrained(checkpoint), one.good_and_bad())
    shared = session._SHARDED | {"use_cpu": False} if order["shard"] else {}
    made = one.Run(checkpoint, out, groups, peft=peft, shared=shared, **told)
    trainer = made.trainer
    trainer.steps = Steps(
        replace(trainer.steps._plan, first=first),
        made.worker if trainer.accelerator.is_main_process else None,
        on_step=lambda *_: None,
        metrics=trainer.sink,
        process=trainer.accelerator.process_index,
        process_count=trainer.accelerator.num_processes,
    )
    trainer.train(resume_from_checkpoint=resume)
    diagnostics, gaps = trainer.take_diagnostics()
    if peft is not None:
        trainer.accelerator.unwrap_model(trainer.model).merge_adapter()
    weights = {name: each.detach().cpu().clone() for name, each in trainer.full_tensors()}
    if trainer.accelerator.is_main_process:
        save_file(weights, out.with_suffix(".safetensors"))
        logs = [each for each in trainer.state.log_history if "loss" in each]
        sharded = type(next(trainer.model.parameters())).__name__ == "DTensor"
        said = {"logs": logs, "tokens": diagnostics.tokens, "gap": max(gaps.tolist(), default=0.0)}
        out.with_suffix(".json").write_text(json.dumps(said | {"sharded": sharded}))


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    if order["shard"]:
        shard_on_cpu()
    processes.is_main()
    for name, told in order["cases"].items():
        case(order, name, told)


if __name__ == "__main__":
    main()
