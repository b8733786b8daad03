"""How every peer is started: one worker, no access log, the mock engine as its only upstream.

Each is given what lets it do its best here; none is asked to do more than its defaults.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from bench.gateway_parts.tools import PARTS, Missing, Site, find

MOCK_PORT = 18000
UPSTREAM = f"http://127.0.0.1:{MOCK_PORT}"
COMMON_KEY = "sk-bench-0123456789"
KEY_CREATE_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One gateway to start; without a command it is the mock engine itself."""

    port: int
    version: str
    command: tuple[str, ...] = ()
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    key: str = field(default=COMMON_KEY, repr=False)
    boot_s: float = 40.0
    metrics: bool = False
    """Whether it counts its requests at /metrics, which is then looked at."""


def direct(site: Site) -> Launch:
    """No gateway: what the load generator and the mock engine can do."""
    return Launch(port=MOCK_PORT, version="", cwd=site.scratch)


def nginx(site: Site) -> Launch:
    """Start a plain proxy: no key, no JSON, no routing."""
    program = find("nginx")
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"nginx/(\S+)", told)
    prefix, conf = str(site.scratch), str(PARTS / "nginx.conf")
    return Launch(
        port=19001,
        version=found[1] if found else "",
        command=(program, "-e", "stderr", "-p", prefix, "-c", conf),
        cwd=site.scratch,
    )


def vllm_router(site: Site) -> Launch:
    """Rust; hashes the session, parses the body and prints it again."""
    pin = "vllm-router==0.1.17"
    command = (str(site.venv(pin) / "vllm-router"), "--policy", "consistent_hash")
    return Launch(
        port=19003,
        version=_of(pin),
        command=(*command, *_rust_options(19003)),
        cwd=site.scratch,
    )


def smg(site: Site) -> Launch:
    """Rust; its default bound would refuse a third of 6,000 requests in flight, so it is raised."""
    pin = "smg==1.13.0"
    command = (str(site.venv(pin) / "smg"), "launch", "--policy", "consistent_hashing")
    more = ("--backend", "vllm", "--max-concurrent-requests", "20000")
    return Launch(
        port=19006,
        version=_of(pin),
        command=(*command, *_rust_options(19006), *more),
        cwd=site.scratch,
    )


def litellm(site: Site) -> Launch:
    """Python; checks a key, reads the body and builds the answer anew."""
    pin = "litellm[proxy]==1.106.2"
    config = str(PARTS / "litellm.yaml")
    options = ("--config", config, "--port", "19007", "--host", "127.0.0.1", "--num_workers", "1")
    return Launch(
        port=19007,
        version=_of(pin),
        command=(str(site.venv(pin) / "litellm"), *options),
        cwd=site.scratch,
        env={
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "DISABLE_SCHEMA_UPDATE": "true",
            "HOME": str(site.scratch),
        },
        boot_s=120.0,
    )


def ours(site: Site) -> Launch:
    """Ours as it ships: keys, limits, routing and metrics on; the limits too high to be met."""
    state = site.scratch / "state"
    serve = (sys.executable, "-m", "serve")
    limits = ("--rpm", "100000000", "--tpm", "1000000000000", "--concurrency", "100000")
    create = ("keys", "create", "--state", str(state), "--scope", "infer,eval,train,admin")
    ran = subprocess.run(
        [*serve, *create, *limits],
        cwd=site.root,
        capture_output=True,
        text=True,
        timeout=KEY_CREATE_S,
        check=False,
    )
    key = next((word for word in ran.stdout.split() if word.startswith("ak_")), None)
    if key is None:
        why = ran.stderr.strip().rpartition("\n")[2][:200]
        raise Missing(f"serve keys create printed no key: {why}")
    return Launch(
        port=19040,
        version=version("palaestra"),
        command=(*serve, "up", "--upstream", UPSTREAM, "--port", "19040", "--state", str(state)),
        cwd=site.root,
        key=key,
        metrics=True,
    )


PEERS: Mapping[str, Callable[[Site], Launch]] = {
    "direct": direct,
    "nginx": nginx,
    "vllm-router": vllm_router,
    "smg": smg,
    "litellm": litellm,
    "ours": ours,
}


def _rust_options(port: int) -> tuple[str, ...]:
    where = ("--worker-urls", UPSTREAM, "--host", "127.0.0.1", "--port", str(port))
    quiet = ("--prometheus-port", str(port + 500), "--log-level", "error")
    return (*where, *quiet, "--worker-startup-check-interval", "1")


def _of(pin: str) -> str:
    return pin.partition("==")[2]
