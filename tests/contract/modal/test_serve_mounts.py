"""A gateway on Modal that carries the routes of training: more is shipped, and guarded alike."""

from pathlib import Path

import httpx
import pytest

from tests.contract.modal.targets import APP, START_S, OnModal, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_routes_of_training_are_there_for_those_who_may(tmp_path: Path) -> None:
    target = OnModal(tmp_path, write_config(tmp_path / "config.yaml"))
    try:
        more = ("--set", "deploy.gateway.mounts=[train.service:modal]")
        deployed = target.verb("deploy", *more)
        assert deployed.returncode == 0, deployed.stderr
        (gateway,) = target.modal.wait_ready(APP, "Gateway", timeout_s=START_S)
        url = target.modal.app(APP).servers["Gateway"].url
        assert "ready after" in target.modal.log(container=gateway)
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            assert client.get("/v1/jobs").status_code == 401
            key = {"authorization": f"Bearer {target.key}"}
            assert client.get("/v1/jobs", headers=key).json() == {"data": []}
    finally:
        target.close()
