"""A replica that goes into a memory snapshot and comes out of it, on the loopback control plane."""

from pathlib import Path

import httpx
import pytest

from tests.contract.modal.targets import APP, START_S, OnModal, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_replica_is_ready_before_the_snapshot_and_answers_after_it(tmp_path: Path) -> None:
    target = OnModal(tmp_path, write_config(tmp_path / "config.yaml"))
    try:
        modal = target.modal
        kept_up = ("--set", "deploy.policy.min_containers=1", "--set", "deploy.snapshot=cpu")
        assert target.verb("prefetch").returncode == 0
        deployed = target.verb("deploy", *kept_up)
        assert deployed.returncode == 0, deployed.stderr
        (container,) = modal.wait_ready(APP, "Policy", timeout_s=START_S)
        log = modal.log(container=container)
        order = [log.index(mark) for mark in ("ready after", "awake", "Ready for task")]
        assert order == sorted(order)
        assert len(modal.called("ContainerCheckpoint", container=container.id)) == 1
        ready = httpx.get(f"http://127.0.0.1:{container.port}/ready", trust_env=False)
        assert ready.json()["replicas_ready"] == 1
    finally:
        target.close()
