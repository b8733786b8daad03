"""A started peer as the benchmark meets it: asked, loaded, and looked at from outside."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from bench.gateway_parts.machine import busy_s, on_core, usage
from bench.gateway_parts.peers import Launch
from bench.gateway_parts.tools import Site

LOAD_CORE = 1
IDLE_CONNECTIONS = 5000
HOLD_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How the mock engine answers."""

    gap_us: int = 0
    """Between the events of a stream."""
    delay_us: int = 0
    """Before the first byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One measurement."""

    name: str
    connections: int
    seconds: float
    warmup_s: float
    options: tuple[str, ...] = ()
    engine: Engine = Engine()
    limit_s: float = 60.0


class LoadFailed(Exception):
    """A load gave no figures; the message says what was seen instead."""


class Target:
    """One peer that was started, or nothing but the mock engine."""

    def __init__(self, launch: Launch, site: Site, pid: int | None) -> None:
        self.launch = launch
        self.pid = pid
        self._loadgen = site.program("loadgen")

    def ask(self, key: str | None) -> int:
        """Send one small request; return the answer's status."""
        body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}
        return self._status("/v1/chat/completions", json.dumps(body).encode(), key)

    def metrics_status(self) -> int:
        """Return the status of /metrics."""
        return self._status("/metrics", None, self.launch.key)

    def wait_until_ready(self, limit_s: float) -> float:
        """Ask until it answers 200; return how long that took, in seconds."""
        start, last = time.monotonic(), "nothing listens"
        while (waited := time.monotonic() - start) < limit_s:
            try:
                status = self.ask(self.launch.key)
            except OSError as error:
                last = str(error)
            else:
                if status == 200:
                    return waited
                last = f"status {status}"
            time.sleep(0.2)
        raise LoadFailed(f"not ready in {limit_s:.0f} s: {last}")

    def put_on(self, load: Load, scale: float, engine_pid: int) -> dict[str, float]:
        """Run the load generator once; return its figures and what the gateway took."""
        length = ("-d", str(load.seconds * scale), "-w", str(load.warmup_s))
        key = ("-H", f"authorization: Bearer {self.launch.key}")
        options = ("-c", str(load.connections), *length, *load.options, *key)
        gateway, engine, all_s, own = self._taken_s(engine_pid)
        start = time.monotonic()
        figures = self._generate(options, load.limit_s)
        wall_s = time.monotonic() - start
        after = self._taken_s(engine_pid)
        gateway_s = after[0] - gateway
        known_s = gateway_s + after[1] - engine + after[3] - own
        spent = gateway_s * figures["seconds"] / wall_s * 1000
        figures["foreign"] = round(max(0.0, (after[2] - all_s - known_s) / wall_s), 3)
        figures["rss_mb"] = round(usage(self.pid).rss_mb, 1)
        if figures["ok"]:
            figures["cpu_s_per_1k"] = round(spent / figures["ok"], 5)
        if events := figures.get("events_per_s", 0) * figures["seconds"]:
            figures["cpu_s_per_1k_events"] = round(spent / events, 6)
        return figures

    def hold_idle(self) -> float:
        """Open connections that say nothing; return what each takes of its memory, in kB.

        One peer grows while it does nothing at all: that is looked at first and taken off.
        """
        growth_mb_per_s = self._grown_mb(usage(self.pid).rss_mb) / HOLD_S
        start, before_mb = time.monotonic(), usage(self.pid).rss_mb
        options = ("-I", "-c", str(IDLE_CONNECTIONS), "-d", "10")
        with subprocess.Popen(self._command(options), stdout=subprocess.PIPE) as holding:
            try:
                assert holding.stdout is not None
                opened = json.loads(holding.stdout.readline() or b"{}")
                if opened.get("refused", IDLE_CONNECTIONS):
                    raise LoadFailed(f"idle connections were refused: {opened}")
                grown_mb = self._grown_mb(before_mb)
                grown_mb -= growth_mb_per_s * (time.monotonic() - start)
                return max(0.0, grown_mb) * 1000 / IDLE_CONNECTIONS
            finally:
                holding.kill()

    def _grown_mb(self, from_mb: float) -> float:
        time.sleep(HOLD_S)
        return usage(self.pid).rss_mb - from_mb

    def _status(self, path: str, body: bytes | None, key: str | None) -> int:
        headers = {"content-type": "application/json", "x-session-id": "ep-0"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        url = f"http://127.0.0.1:{self.launch.port}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data=body, headers=headers), timeout=5
            ) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def _command(self, options: tuple[str, ...]) -> list[str]:
        return on_core(LOAD_CORE, [self._loadgen, "-p", str(self.launch.port), *options])

    def _generate(self, options: tuple[str, ...], limit_s: float) -> dict[str, float]:
        try:
            ran = subprocess.run(
                self._command(options), capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise LoadFailed(f"the load did not end in {limit_s:.0f} s") from None
        if ran.returncode:
            raise LoadFailed(ran.stderr.strip()[:200] or f"loadgen ended with {ran.returncode}")
        figures: dict[str, float] = json.loads(ran.stdout)
        return figures

    def _taken_s(self, engine_pid: int) -> tuple[float, float, float, float]:
        times = os.times()
        children = times.children_user + times.children_system
        return usage(self.pid).cpu_s, usage(engine_pid).cpu_s, busy_s(), children
