import dataclasses
from pathlib import Path

import pytest

from serve.config import (
    EngineConfig,
    api_key_from,
    cache_dir,
    child_environment,
    is_loopback,
)
from serve.errors import ConfigError


def config(**fields: object) -> EngineConfig:
    return EngineConfig(checkpoint=Path("/m"), model="m", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": 0}, "a port is a number from 1 to 65535, got 0"),
        ({"port": 65_536}, "a port is a number"),
        ({"max_model_len": 0}, "--max-model-len must be at least 1, got 0"),
        ({"host": "0.0.0.0"}, r"refusing to listen on 0\.0\.0\.0 without a key"),
        ({"host": "example.org"}, "refusing to listen on example.org without a key"),
    ],
)
def test_what_cannot_be_served(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_beyond_loopback_with_a_key() -> None:
    assert config(host="0.0.0.0", api_key="k").host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALAESTRA_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("PALAESTRA_CACHE")
    assert cache_dir().name == "palaestra"

    monkeypatch.setenv("A_KEY", "secret")
    assert (api_key_from("A_KEY"), api_key_from(None)) == ("secret", None)
    monkeypatch.setenv("A_KEY", "")
    with pytest.raises(ConfigError, match="--api-key-env A_KEY: that environment variable is not"):
        api_key_from("A_KEY")

    monkeypatch.setenv("SAID", "by user")
    child = child_environment({"SAID": "default", "UNSAID": "default"}, {"FIXED": "yes"})
    assert (child["SAID"], child["UNSAID"], child["FIXED"]) == ("by user", "default", "yes")
    assert child_environment({}, {"SAID": "fixed"})["SAID"] == "fixed"


def test_what_an_engine_is_told() -> None:
    plain = config()
    assert (plain.host, plain.port, plain.api_key) == ("127.0.0.1", 8000, None)
    assert (plain.swappable, plain.lora, plain.cores, plain.extra_args) == (True, False, None, ())
    assert "k-secret" not in repr(config(api_key="k-secret"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.port = 1  # type: ignore[misc]
