import re
import sys
from pathlib import Path

import pytest

from serve.config import EngineConfig
from serve.engine.command import Command, Device, DeviceKind, engine_command, vllm_command

CPU = Device(kind=DeviceKind.CPU, memory_bytes=8 << 30)
GPU = Device(kind=DeviceKind.GPU)


def config(**fields: object) -> EngineConfig:
    return EngineConfig(checkpoint=Path("/m"), model="name", **fields)  # type: ignore[arg-type]


COMMON = (
    *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"),
    *("--model", "/m", "--served-model-name", "name", "--host", "127.0.0.1", "--port", "8000"),
    "--disable-uvicorn-access-log",
    "--enable-prompt-tokens-details",
)
SAMPLING = ("--enable-scale-out", "--logprobs-mode", "processed_logprobs")
SWAPPABLE = ("--weight-transfer-config", '{"backend": "palaestra-file"}')
DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}

NOISE = vllm_command(config(), GPU).noise
DEFAULTS = {
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def test_on_a_gpu() -> None:
    assert vllm_command(config(), GPU) == Command(
        argv=(*COMMON, *SAMPLING, *SWAPPABLE),
        env={"VLLM_API_KEY": "", **DEV_MODE},
        noise=NOISE,
        env_defaults=DEFAULTS,
    )


def test_on_a_cpu() -> None:
    assert vllm_command(config(), CPU) == Command(
        argv=(
            *(*COMMON, *SAMPLING, *SWAPPABLE),
            *("--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"),
            *("--block-size", "32"),
        ),
        env={"VLLM_API_KEY": "", **DEV_MODE},
        noise=NOISE,
        env_defaults=DEFAULTS | {"VLLM_CPU_KVCACHE_SPACE": "2"},
    )


LORA_ENV = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


@pytest.mark.parametrize(
    ("fields", "argv", "env"),
    [
        ({"swappable": False}, SAMPLING, {}),
        (
            {"lora": True, "max_loras": 3, "max_lora_rank": 32},
            (
                *(*SAMPLING, *SWAPPABLE, "--enable-lora"),
                *("--max-loras", "3", "--max-lora-rank", "32"),
            ),
            DEV_MODE | LORA_ENV,
        ),
        # Whoever reaches the routes for new weights may use them: others must not.
        ({"host": "0.0.0.0", "api_key": "key"}, SAMPLING, {}),
    ],
)
def test_weights_and_adapters(
    fields: dict[str, object], argv: tuple[str, ...], env: dict[str, str]
) -> None:
    command = vllm_command(config(**fields), GPU)
    assert command.argv[len(COMMON) :] == argv
    assert command.env == {"VLLM_API_KEY": str(fields.get("api_key", "")), **env}


@pytest.mark.parametrize(("gib", "kv_gib"), [(1, "1"), (4, "1"), (8, "2"), (512, "2")])
def test_kv_cache_is_a_quarter_of_the_memory_within_bounds(gib: int, kv_gib: str) -> None:
    device = Device(kind=DeviceKind.CPU, memory_bytes=gib << 30)
    assert vllm_command(config(), device).env_defaults["VLLM_CPU_KVCACHE_SPACE"] == kv_gib


def test_length_and_extra_arguments_in_that_order() -> None:
    command = vllm_command(config(max_model_len=512, extra_args=("--dtype", "half")), CPU)
    assert command.argv[len(COMMON) : len(COMMON) + 2] == ("--max-model-len", "512")
    assert command.argv[-2:] == ("--dtype", "half")


def test_key_travels_in_the_environment_and_shows_nowhere() -> None:
    given = config(api_key="secret")
    command = vllm_command(given, GPU)
    assert command.env["VLLM_API_KEY"] == "secret"
    assert "secret" not in " ".join(command.argv) + repr(command) + repr(given)


@pytest.mark.parametrize(
    ("line", "noise"),
    [
        ("INFO:     Shutting down", True),
        ("(APIServer pid=1) INFO 11-21 07:54:55 [launcher.py:195] Route: /v1, Methods: POST", True),
        ("nanobind: leaked 514 functions!", True),
        (' - leaked function "id"', True),
        ("(EngineCore pid=1) WARNING 11-21 [core_client.py:817] [shutdown] MPClient: end", True),
        ("(EngineCore pid=1) ERROR 11-21 07:54:57 [core.py:906] RuntimeError: no", False),
        ("api_server: error: unrecognized arguments: --nope", False),
    ],
)
def test_noise(line: str, noise: bool) -> None:
    assert bool(re.search(NOISE, line)) is noise


def test_another_program_is_told_what_it_needs_and_nothing_of_vllms() -> None:
    words = ("python", "-m", "mine", "{model}", "--at={host}:{port}", "{checkpoint}/x")
    told = config(program=words, extra_args=("--more",), port=18000)
    assert engine_command(told, GPU) == Command(
        argv=(sys.executable, "-m", "mine", "name", "--at=127.0.0.1:18000", "/m/x", "--more"),
        env={"VLLM_API_KEY": ""},
    )
    assert engine_command(config(), GPU) == vllm_command(config(), GPU)
