"""What a vLLM server says of its load at /metrics, for `-c auto`; other servers are let be.

Speed does not matter here: httpx.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import httpx

from evalkit.play.adaptive import Gauges
from evalkit.play.gate import Gate

PERIOD_S = 1.0
TIMEOUT_S = 2.0
FAILURES = 5
"""Looks in a row that may fail before a server that had answered is let be."""


def read_gauges(text: str) -> Gauges | None:
    """Read the Prometheus text of a vLLM server; None where its gauges are not in it.

    Several engines behind one URL are one server: their calls add up, the fullest cache counts.
    """
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if line.startswith("vllm:"):
            name = line.partition("{")[0].partition(" ")[0]
            with suppress(ValueError):
                found.setdefault(name, []).append(float(line.rpartition(" ")[2]))
    running, waiting = (
        found.get("vllm:num_requests_running"),
        found.get("vllm:num_requests_waiting"),
    )
    if running is None or waiting is None:
        return None
    usage = found.get("vllm:kv_cache_usage_perc") or found.get("vllm:gpu_cache_usage_perc") or [0.0]
    return Gauges(
        running=sum(running),
        waiting=sum(waiting),
        kv_usage=max(usage),
        preemptions=sum(found.get("vllm:num_preemptions_total", [])),
    )


@asynccontextmanager
async def watched(
    gate: Gate,
    base_url: str,
    headers: Mapping[str, str],
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[None]:
    """Tell `gate` what the server says of itself while the block runs, if it does."""
    task = asyncio.create_task(_watch(gate, base_url, headers, sleep))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(
    gate: Gate,
    base_url: str,
    headers: Mapping[str, str],
    sleep: Callable[[float], Awaitable[object]],
) -> None:
    url = f"{base_url.rsplit('/', 1)[0]}/metrics"
    failures = FAILURES - 1  # one is enough before the first answer
    async with httpx.AsyncClient(headers=dict(headers), timeout=TIMEOUT_S) as client:
        while failures < FAILURES:
            try:
                response = await client.get(url)
                gauges = read_gauges(response.text) if response.status_code == 200 else None
            except (httpx.HTTPError, httpx.InvalidURL):
                gauges = None
            if gauges is None:
                failures += 1
            else:
                failures = 0
                gate.told(gauges)
            await sleep(PERIOD_S)
