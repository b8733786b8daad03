"""bench/gpu.py: what it would start on a GPU, and what becomes of the numbers."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bench import gpu
from bench.gpu import (
    Evaluation,
    Failed,
    Learned,
    Load,
    config_of,
    default_config,
    device,
    evaluation,
    load_of,
    summarize,
    table,
    training,
)
from train.cli import _overrides, _parser
from train.config import resolve
from train.gateway import serve_command

URL = "http://127.0.0.1:4321/v1"


def options(**told: Any) -> argparse.Namespace:
    return argparse.Namespace(**({"config": None, "set": [], "steps": 7, "episodes": 30} | told))


class TestCommandLines:
    def test_an_adapter_of_smollm2_is_trained_on_a_gpu(self, tmp_path: Path) -> None:
        config = config_of(options(), True)
        assert config.model.lora is not None
        assert "smollm2-135m" in config.model.path
        words = serve_command(config, tmp_path)
        assert "--lora" in words
        assert "--max-model-len" in words

    def test_a_tiny_policy_is_trained_as_a_whole_without_one(self, tmp_path: Path) -> None:
        config = config_of(options(), False)
        assert config.model.lora is None
        assert config.env.name == "key_door"
        assert "--lora" not in serve_command(config, tmp_path)

    @pytest.mark.parametrize("on_gpu", [True, False])
    def test_training_is_told_what_was_asked_for(self, tmp_path: Path, on_gpu: bool) -> None:
        asked = options(set=["learn.learning_rate=0.5", "model.path=/models/x"])
        config = config_of(asked, on_gpu)
        words = training(asked, config, URL, on_gpu, tmp_path)
        assert words[:4] == [sys.executable, "-m", "train", "grpo"]
        typed = _parser(words[3:]).parse_args(words[3:])
        assert typed.config == str(default_config(on_gpu))
        told = resolve({"env": {"name": "key_door"}, "model": {}}, _overrides(typed, {}))
        assert (told.gateway.url, told.learn.steps, told.out) == (URL, 7, str(tmp_path))
        assert (told.learn.learning_rate, told.model.path) == (0.5, "/models/x")
        assert told.model.name == gpu.name_of(config) == config.model.name or "x"

    def test_it_keeps_a_gateway_and_a_number_of_steps_of_its_own(self) -> None:
        asked = options(set=["gateway.url=http://elsewhere:1", "learn.steps=900"])
        config = config_of(asked, False)
        assert (config.gateway.url, config.learn.steps) == (None, 7)

    @pytest.mark.parametrize("on_gpu", [True, False])
    def test_the_evaluation_plays_as_training_does(self, tmp_path: Path, on_gpu: bool) -> None:
        from evalkit.arguments import run_parser

        config = config_of(options(set=["rollouts.temperature=0.75"]), on_gpu)
        words = evaluation(config, URL, 30, tmp_path)
        assert words[:3] == [sys.executable, "-m", "evalkit"]
        typed = run_parser().parse_args(words[3:])
        assert typed.model == [f"{URL}#{gpu.name_of(config)}"]
        assert (typed.env, typed.strategy) == (config.env.name, [config.rollouts.strategy])
        assert f"size={config.env.args['size']}" in typed.env_arg
        assert (typed.temperature, typed.max_tokens) == (0.75, config.rollouts.max_tokens)
        assert str(typed.out) == str(tmp_path)


def row(step: int, **cells: float | None) -> dict[str, str]:
    told: dict[str, float | None] = {
        "step": step,
        "step_s": 2.0,
        "wait_s": 0.5,
        "learn_s": 1.0,
        "sync_s": 0.25,
        "tokens_trained": 300,
        "gap_max": 1e-6,
    }
    return {name: "" if cell is None else str(cell) for name, cell in (told | cells).items()}


class TestNumbers:
    def test_the_first_steps_do_not_count(self) -> None:
        rows = [row(1, step_s=90.0), row(2, step_s=50.0)]
        found = summarize([*rows, row(3), row(4, step_s=4.0, gap_max=2e-6), row(5, sync_s=None)])
        assert found.steps == 3
        assert (found.step_s, found.shortest_s, found.longest_s) == (2.0, 2.0, 4.0)
        assert found.idle_share == pytest.approx(1.5 / 8)
        assert found.tokens_per_s == pytest.approx(900 / 8)
        assert (found.sync_s, found.gap_max) == (0.25, 2e-6)

    @pytest.mark.parametrize("count", [1, 2])
    def test_of_few_steps_the_last_one_counts(self, count: int) -> None:
        rows = [row(n, step_s=float(n), gap_max=None, sync_s=None) for n in (1, 2)]
        found = summarize(rows[:count])
        assert (found.steps, found.step_s) == (1, float(count))
        assert found.sync_s is found.gap_max is None

    def test_the_table(self) -> None:
        told = {
            "load": Load(requests_per_s=1234.56, p50_ms=40.0, p99_ms=90.0, failed=2),
            "before": Evaluation(turns=1000, turns_per_s=50.0, success=0.25),
            "grpo": summarize([row(1)]),
            "after": Evaluation(turns=900, turns_per_s=60.0, success=0.5),
            "learned": Learned(diff=0.25, low=0.125, high=0.375),
        }
        lines = table(told)
        assert "| gateway: short completions/s, 64 at once | 1,234.6 |" in lines
        assert "| failed | 2 |" in lines
        assert "| evalkit: turns/s, before and after | 50.0, 60.0 |" in lines
        assert "| trainer idle | 25% |" in lines
        assert "| learning: success, before and after | 25.0%, 50.0% |" in lines
        assert "| difference, 95 % CI, points | +25.0 (+12.5..+37.5) |" in lines
        assert {line.count("|") for line in lines} == {3}
        told["learned"] = Learned(diff=-0.25, low=None, high=None)
        assert table(told)[-1] == "| difference, 95 % CI, points | -25.0 |"

    def test_a_device_is_named(self) -> None:
        assert device(False).endswith("cores, no GPU")
        assert "cores" in device(True)


Handler = Callable[[int], Awaitable[int]]


async def loaded(answer: Handler, **told: Any) -> tuple[Load, list[bytes]]:
    """Put load on a server that answers with the status that `answer` returns; 0 hangs up."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := (await reader.read(65536)):
            heads.append(head)
            status = await answer(len(heads))
            if not status:
                break
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\n{{}}".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        settings = {"connections": 4, "warm_up_s": 0.1, "load_s": 0.4} | told
        return await load_of(f"http://127.0.0.1:{port}/v1", "m", **settings), heads
    finally:
        server.close()


class TestLoad:
    def test_as_many_at_once_as_there_are_connections(self) -> None:
        async def slowly(_: int) -> int:
            await asyncio.sleep(0.02)
            return 200

        found, heads = asyncio.run(loaded(slowly))
        assert found.failed == 0
        assert found.p50_ms >= 20
        assert found.p50_ms <= found.p99_ms
        assert 10 < found.requests_per_s <= 4 / 0.02 + 10
        assert heads[0].startswith(b"POST /v1/completions ")
        assert b'"model": "m"' in b"".join(heads[:2])

    def test_failures_are_counted_and_are_not_answers(self) -> None:
        turns = itertools.cycle((200, 503, 0))

        async def unsteady(_: int) -> int:
            await asyncio.sleep(0.01)
            return next(turns)

        found, _ = asyncio.run(loaded(unsteady))
        assert found.failed > 0
        assert found.requests_per_s > 0

    def test_without_any_answer_nothing_was_measured(self) -> None:
        async def never(_: int) -> int:
            await asyncio.sleep(0.01)
            return 404

        with pytest.raises(Failed, match="no completion of m"):
            asyncio.run(loaded(never))
