"""TRL's stock GRPOTrainer on one machine: transformers' `generate` plays, nothing is served.

    python bench/grpo_stock.py CONFIG METRICS

CONFIG is what `python -m train grpo --config` takes. The episodes are played by the same loop as in
the other modes, in lockstep: when all episodes of a step wait for a reply, one batch is generated.
Writes the steps into METRICS as `train` does. Started by bench/grpo.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
# bench/evalkit.py has the package's name: search the installed one first.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import torch  # noqa: E402
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback  # noqa: E402
from trl import GRPOTrainer  # noqa: E402

from envs import make  # noqa: E402
from evalkit.errors import ContextOverflow  # noqa: E402
from evalkit.play.policy import Ask, Completion  # noqa: E402
from evalkit.play.strategies import parse_strategy  # noqa: E402
from evalkit.play.tokens import TokenTurn  # noqa: E402
from train.config import TrainConfig, load  # noqa: E402
from train.learner.session import shared_arguments  # noqa: E402
from train.learner.sync_mode import arguments, prompts, settled  # noqa: E402
from train.learner.sync_rows import assemble, step_of, told_reward  # noqa: E402
from train.rewards.registry import make_reward  # noqa: E402
from train.rollouts.player import Plan, Player  # noqa: E402
from train.rollouts.renderer import ChatRenderer  # noqa: E402
from train.rollouts.rows import Group  # noqa: E402
from train.track.metrics import MetricsFile, StepMetrics, of_groups  # noqa: E402
from train.track.progress import line  # noqa: E402

_SETTLED = 3
"""Rounds of the event loop without another question, after which all episodes wait."""


class Lockstep:
    """Answers all episodes that wait in one batch of transformers' `generate`."""

    def __init__(self, config: TrainConfig, renderer: ChatRenderer) -> None:
        self.renderer = renderer
        self.trainer: Any = None
        """Set before the first question."""
        self.batches = 0
        self._longest = config.learn.max_row_tokens - config.rollouts.max_tokens
        self._sampling = {
            "do_sample": True,
            "temperature": config.rollouts.temperature,
            "top_p": config.rollouts.top_p,
            "top_k": 0,
            "max_new_tokens": config.rollouts.max_tokens,
        }
        self._waiting: list[tuple[tuple[int, ...], asyncio.Future[list[int]]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def generate(self, ask: Ask, prompt: Any) -> tuple[TokenTurn, Completion]:  # noqa: ANN401
        """Return the reply to a prompt, when all others have asked too."""
        del ask
        if len(prompt) > self._longest:
            raise ContextOverflow(f"a prompt of {len(prompt)} tokens, at most {self._longest}")
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting.append((tuple(prompt), answer))
        if len(self._waiting) == 1:
            self._answering = asyncio.create_task(self._answer())
        ids = await answer
        turn = TokenTurn(
            prompt=tuple(prompt),
            sampled=tuple(ids),
            logprobs=(0.0,) * len(ids),
            versions=(0,) * len(ids),
        )
        return turn, Completion(
            text=self.renderer.text(ids),
            finish_reason="stop",
            prompt_tokens=len(prompt),
            completion_tokens=len(ids),
            model="stock",
            policy_version="0",
            elapsed_s=0.0,
            attempts=1,
        )

    async def aclose(self) -> None:
        """Close nothing."""

    async def _answer(self) -> None:
        seen = quiet = 0
        while quiet < _SETTLED:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)
        asked, self._waiting = self._waiting, []
        for (_, answer), ids in zip(asked, self._batch([ids for ids, _ in asked]), strict=True):
            answer.set_result(ids)

    def _batch(self, asked: list[tuple[int, ...]]) -> list[list[int]]:
        self.batches += 1
        tokenizer = self.trainer.processing_class
        width = max(map(len, asked))
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(each)) + list(each) for each in asked])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in asked])
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with torch.no_grad():
            made = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                pad_token_id=pad,
                eos_token_id=end,
                use_cache=True,
                **self._sampling,
            )
        return [_until(row, end) for row in made[:, width:].tolist()]


def _until(ids: list[int], end: int) -> list[int]:
    """Return ids up to the end of the turn, which is one of them."""
    return ids[: ids.index(end) + 1] if end in ids else ids


class Stock(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Plays what TRL asks for, and writes down what each step took."""

    def __init__(self, config: TrainConfig, model: Lockstep, metrics: Path) -> None:
        self._config = config
        self._model = model
        self._file = MetricsFile(metrics, after_step=0)
        self._told: dict[str, Any] = {}
        self._began_s = self._stepped_s = self._step_s = time.perf_counter()

    def rollouts(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:  # noqa: ANN401
        """Be TRL's rollout_func."""
        started_s = time.perf_counter()
        self._model.trainer = trainer
        config = self._config.rollouts
        step = step_of(prompts, config.group_size)
        first = (step - 1) * config.groups_per_step
        groups = asyncio.run(self._play(range(first, first + config.groups_per_step)))
        self._told = {"step": step, "version": 0, **of_groups(groups, 0)}
        self._told["wait_s"] = time.perf_counter() - started_s
        return assemble(groups, config.group_size, trainer.processing_class.eos_token_id)

    async def _play(self, indices: range) -> tuple[Group, ...]:
        config = self._config
        plan = Plan(
            run_id="stock",
            run_seed=config.learn.seed,
            make_env=partial(make, config.env.name, **config.env.args),
            strategy=parse_strategy(config.rollouts.strategy),
            group_size=config.rollouts.group_size,
            concurrency=len(indices) * config.rollouts.group_size,
            attempts=1,
            reward_attempts=config.reward.attempts,
        )
        model: Any = self._model
        player = Player(plan, model, make_reward(config.reward))
        return tuple(await asyncio.gather(*(player.play_group(index, 0) for index in indices)))

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Start the clock of the first step."""
        self._stepped_s = time.perf_counter()

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Start the clock of what is played and learned."""
        self._step_s = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Stop it."""
        self._told["learn_s"] = time.perf_counter() - self._step_s - self._told["wait_s"]

    def on_log(self, *_: object, logs: dict[str, float] | None = None, **__: object) -> None:
        """Write the step down."""
        if logs is None or "loss" not in logs:
            return
        now_s = time.perf_counter()
        step_s, self._stepped_s = now_s - self._stepped_s, now_s
        metrics = StepMetrics(
            **self._told,
            loss=logs["loss"],
            grad_norm=logs.get("grad_norm"),
            lr=logs.get("learning_rate"),
            entropy=logs.get("entropy"),
            step_s=step_s,
            tokens_per_s=self._told["tokens_trained"] / step_s,
            idle_share=self._told["wait_s"] / step_s,
            wall_s=now_s - self._began_s,
        )
        self._file.step(metrics)
        print(line(metrics, self._config.learn.steps, None), flush=True)


def main() -> int:
    """Train as the config says."""
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    config = settled(load(Path(sys.argv[1]), {}))
    folder = Path(config.model.path)
    stock = Stock(config, Lockstep(config, ChatRenderer.load(folder)), Path(sys.argv[2]))
    shared = shared_arguments(config, Path(sys.argv[2]).parent) | {"save_strategy": "no"}
    trainer = GRPOTrainer(
        model=str(folder),
        args=arguments(config, shared),
        reward_funcs=told_reward,
        train_dataset=prompts(config.learn.steps, config.rollouts.groups_per_step),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[stock],
        rollout_func=stock.rollouts,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
