import json
from pathlib import Path

import pytest

from serve.cli import main
from serve.deploy.config import load
from serve.deploy.rates import estimate
from tests.unit.serve.deploy.configs import ALL, BASE


def test_a_dry_run_shows_the_config_its_digest_and_the_cost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["deploy", "--dry-run", "--config", str(BASE), "--gpu", "l4,t4", "--app", "mine"]
    assert main([*arguments, "--set", "deploy.policy.min_containers=2"]) == 0
    shown = capsys.readouterr().out
    assert "deploy.policy.gpu=[L4, T4]\n" in shown
    assert "deploy.app=mine\n" in shown
    assert "(2 replicas, 1 gateways)" in shown
    config = load(
        BASE,
        sets=["deploy.policy.min_containers=2", "deploy.policy.gpu=[L4,T4]", "deploy.app=mine"],
    )
    assert f"sha256:{config.digest}" in shown


def test_every_line_of_a_dry_run_is_what_set_takes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["deploy", "--dry-run", "--config", str(ALL[0])])
    shown = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    sets = [line for line in shown if not line.endswith(("={}", "=null"))]
    assert load(ALL[0], sets=sets) == load(ALL[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["deploy", "--set", "deploy.apx=1"], "deploy.apx: there is no such key"),
        (["prefetch", "--target", "local"], "serve pull MODEL"),
        (["scale", "--target", "local"], "scale: say --min"),
        (["scale"], "scale: say --min, --max or --buffer"),
    ],
)
def test_wrong_usage_is_one_line_and_two(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("arguments", [["smoke", "--within-s", "0"], ["scale", "--min", "1"]])
def test_a_gateway_that_is_not_there_is_one_line_and_one(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    nowhere = ["--target", "local", "--url", "http://127.0.0.1:9"]
    assert main([*arguments, *nowhere]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_urls_here_say_how_to_get_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["urls", "--target", "local"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("OPENAI_BASE_URL=http://127.0.0.1:8000/v1\n")
    assert "serve keys create" in shown


def cost(**deploy: object) -> tuple[float | None, float | None]:
    sets = [f"deploy.{key.replace('__', '.')}={json.dumps(value)}" for key, value in deploy.items()]
    found = estimate(load(BASE, sets=sets, environ={}))
    return found.idle, found.most


def test_what_it_costs_follows_from_what_may_run() -> None:
    idle, most = cost(policy__gpu=["T4", "H100"], policy__max_containers=2)
    assert idle == pytest.approx((2 * 0.0000131 + 2 * 0.00000222) * 3600)
    each = 0.001097 + 4 * 0.0000131 + 32 * 0.00000222
    assert most == pytest.approx(2 * each * 3600 + (idle or 0))
    kept = cost(policy__gpu=["H100:2"], policy__min_containers=1)[0]
    assert kept is not None
    assert kept > 2 * 0.001097 * 3600
    unknown = cost(policy__gpu=["X9000"])
    assert unknown[0] == pytest.approx(idle)
    assert unknown[1] is None
    assert cost(policy__gpu=["X9000"], policy__min_containers=1)[0] is None
    assert cost(policy__max_containers=None)[1] is None
    regional = cost(policy__max_containers=2, policy__regions=["us-east"])[1]
    assert regional is not None
    assert most is not None
    assert regional == pytest.approx((most - (idle or 0)) * 1.75 + (idle or 0))


def test_dotenv_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PALAESTRA_SERVE__DEPLOY__APP=from-dotenv\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALAESTRA_SERVE__DEPLOY__APP", "x")
    monkeypatch.delenv("PALAESTRA_SERVE__DEPLOY__APP")
    assert main(["deploy", "--dry-run"]) == 0
