"""What serve can be told, and the only place where it reads the environment."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from serve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One engine to start. `checkpoint` is a folder in Hugging Face's layout."""

    checkpoint: Path
    model: str
    """The name under which requests ask for it."""
    host: str = "127.0.0.1"
    port: int = 8000
    max_model_len: int | None = None
    """Longest prompt and completion together, in tokens; None is the checkpoint's own."""
    api_key: str | None = field(default=None, repr=False)
    swappable: bool = True
    """Whether it can take new weights while it runs."""
    lora: bool = False
    """Whether it serves LoRA versions beside the full one."""
    max_loras: int = 4
    """The most adapters in one batch, and loaded at once."""
    max_lora_rank: int = 16
    cores: str | None = None
    """The CPU's cores for it, as `0-3` or `0,1`; None is all that vLLM sees fit."""
    extra_args: tuple[str, ...] = ()
    """Put last on vLLM's command line, so they win."""
    program: tuple[str, ...] = ()
    """Run instead of vLLM; {checkpoint}, {model}, {host} and {port} in its words are filled in."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65_536:
            raise ConfigError(f"a port is a number from 1 to 65535, got {self.port}")
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ConfigError(f"--max-model-len must be at least 1, got {self.max_model_len}")
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"refusing to listen on {self.host} without a key: everybody who reaches it could "
                "use the engine. Give --api-key-env VAR, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def api_key_from(variable: str | None) -> str | None:
    """Read the key from the environment variable of that name; no name, no key."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(f"--api-key-env {variable}: that environment variable is not set")
    return key


def secret_from(variable: str, told: str) -> str:
    """Read a secret for a header from the environment; `told` is the key that names it."""
    value = os.environ.get(variable, "").strip()
    if not value or not value.isascii() or not value.isprintable():
        said = "is no text for a header" if value else "is not set"
        raise ConfigError(f"{told}: the environment variable {variable} {said}")
    return value


def cache_dir() -> Path:
    """Return the folder for models and logs: $PALAESTRA_CACHE, or the user's cache folder."""
    chosen = os.environ.get("PALAESTRA_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("palaestra"))


def child_environment(defaults: Mapping[str, str], fixed: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child: ours over `defaults`, `fixed` over both."""
    return {**defaults, **os.environ, **fixed}
