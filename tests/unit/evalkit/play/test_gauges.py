"""What vLLM says at /metrics, and servers that say nothing there."""

from __future__ import annotations

import asyncio

import pytest

from evalkit.play.adaptive import AdaptiveLimit, Gauges
from evalkit.play.gate import Gate
from evalkit.play.gauges import FAILURES, read_gauges, watched
from evalkit.testing import FakeServer

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 12.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
"""


def test_the_engines_of_a_server_are_taken_together() -> None:
    assert read_gauges(METRICS) == Gauges(running=7.0, waiting=12.0, kv_usage=0.75, preemptions=2.0)


def test_older_versions_name_the_cache_otherwise() -> None:
    old = METRICS.replace("kv_cache", "gpu_cache")
    assert read_gauges(old) == read_gauges(METRICS)


@pytest.mark.parametrize("text", ["", '{"data": []}', "process_cpu_seconds_total 3.0\n"])
def test_what_is_not_vllms_is_nothing(text: str) -> None:
    assert read_gauges(text) is None


class Told(AdaptiveLimit):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Gauges] = []

    def told(self, gauges: Gauges, now_s: float) -> None:
        self.heard.append(gauges)


def looks(server: FakeServer, count: int) -> tuple[list[Gauges], int]:
    """Watch a server for up to `count` looks; return what was heard, and how often it was asked."""
    limit, asked, over = Told(), 0, asyncio.Event()

    async def sleep(_: float) -> None:
        nonlocal asked
        asked += 1
        if asked == count:
            over.set()
            await asyncio.Event().wait()

    async def scene() -> None:
        async with watched(Gate(limit), f"{server.url}/v1", {}, sleep=sleep):
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait(
                [*tasks, asyncio.create_task(over.wait())], return_when=asyncio.FIRST_COMPLETED
            )

    asyncio.run(scene())
    return limit.heard, asked


class MetricsServer(FakeServer):
    """Says what it is told to at /metrics."""

    metrics: tuple[int, bytes]

    def _listed(self, path: str) -> tuple[int, object]:
        return self.metrics if path == "/metrics" else super()._listed(path)


def test_a_server_that_says_how_it_is_is_heard_every_time() -> None:
    with MetricsServer(lambda _: "up") as server:
        server.metrics = 200, METRICS.encode()
        heard, asked = looks(server, 3)
    assert heard == [read_gauges(METRICS)] * 3
    assert asked == 3


def test_a_server_without_metrics_is_asked_once() -> None:
    with FakeServer(lambda _: "up") as server:
        heard, asked = looks(server, 9)
    assert (heard, asked) == ([], 1)


def test_a_server_that_had_metrics_may_miss_a_few() -> None:
    with MetricsServer(lambda _: "up") as server:
        server.metrics = 200, METRICS.encode()
        limit, asked = Told(), 0

        async def sleep(_: float) -> None:
            nonlocal asked
            asked += 1
            server.metrics = 500, b""

        async def scene() -> None:
            async with watched(Gate(limit), f"{server.url}/v1", {}, sleep=sleep):
                await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})

        asyncio.run(scene())
    assert len(limit.heard) == 1
    assert asked == 1 + FAILURES
