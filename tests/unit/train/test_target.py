"""Where a run computes: what the sections take, and how they are put together."""

from __future__ import annotations

from typing import Any

import pytest

from train.config import digest, resolve
from train.errors import BadConfig

LEAST: dict[str, Any] = {"env": {"name": "key_door"}, "model": {"path": "m"}}
SERVED = {"gateway.url": "http://h:1"}


@pytest.mark.parametrize(
    ("gpu", "kind", "count"),
    [
        (None, None, 0),
        ("H100", "H100", 1),
        ("A100-80GB:4", "A100-80GB", 4),
        ("h100!:8", "H100", 8),
        ("RTX-PRO-6000", "RTX-PRO-6000", 1),
    ],
)
def test_gpus(gpu: str | None, kind: str | None, count: int) -> None:
    compute = resolve(LEAST, {"compute.gpu": gpu}).compute
    assert (compute.gpu_type, compute.gpu_count) == (kind, count)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compute.gpu": "H100:0"}, "compute.gpu: expected a GPU as H100 or A100-80GB:4"),
        ({"compute.gpu": "H100, A100"}, "compute.gpu: expected a GPU"),
        ({"compute.timeout_s": 86401}, "compute.timeout_s: Input should be less than or equal"),
        ({"compute.retries": 11}, "compute.retries: Input should be less than or equal to 10"),
        ({"compute.gpu": "H100", "learn.processes": 2}, "learn.processes (2) is one per GPU"),
        ({"compute.nodes": 2}, "compute.nodes > 1 needs gateway.url"),
        ({"compute.nodes": 2, "learn.processes": 3, **SERVED}, "that nodes divides"),
        ({"volumes.root": "palaestra"}, "volumes.root must be an absolute folder"),
        ({"volumes.root": "/"}, "volumes.root must be an absolute folder"),
        ({"volumes.runs": "a b"}, "volumes.runs: a volume's name has up to 64 letters"),
        ({"volumes.runs": "{HOME}"}, "volumes.runs: a volume's name"),
        ({"volumes.data": "palaestra-cache"}, "must be four volumes"),
        ({"budget.usd": 0}, "budget.usd: Input should be greater than 0"),
        ({"notify.url_env": "https://h/x"}, "not the address itself"),
        ({"compute.gpus": "H100"}, "compute.gpus: no such key"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        resolve(LEAST, settings)
    assert said in str(caught.value)


def test_several_machines_reach_one_gateway() -> None:
    several = {"compute.nodes": 2, "compute.gpu": "H100:8", "learn.processes": 16, **SERVED}
    assert resolve(LEAST, several).learn.processes == 16


def test_volumes_are_named_after_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERIMENTER", "ann")
    monkeypatch.setenv("EXPERIMENT_NAME", "first")
    volumes = resolve(LEAST, {}).volumes
    assert (volumes.runs, volumes.cache) == ("palaestra-runs-ann-first", "palaestra-cache")


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({}, "special"),
        ({"env.name": "tic_tac_toe"}, "m"),
        ({"model.path": "said"}, "said"),
    ],
)
def test_a_model_by_env(settings: dict[str, Any], path: str) -> None:
    tree = {**LEAST, "model": {"path": "m", "overrides": {"key_door": "special"}}}
    config = resolve(tree, settings)
    assert (config.model.path, config.model.overrides) == (path, {})
    again = resolve(config.model_dump(mode="json"), {})
    assert again == config
    assert digest(again) == digest(config)


def test_a_digest_is_of_the_whole_config() -> None:
    config = resolve(LEAST, {})
    assert len(digest(config)) == 64
    assert digest(resolve(LEAST, {"compute.gpu": "H100"})) != digest(config)
