"""The shipped configs, deployed by the real client: what Modal is told equals the config."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from serve.deploy import images, plan
from serve.deploy.config import ServingConfig, load
from tests.loopback_modal import FunctionView, LoopbackModal, ServerView
from tests.loopback_modal.plane import HOME

CONFIGS = tuple(sorted(Path("serve/configs").resolve().glob("modal*.yaml")))
SECRETS = {
    "palaestra-admin": {"PALAESTRA_ADMIN_KEY": "ak_0"},
    "palaestra-proxy": {"PALAESTRA_PROXY_TOKEN": LoopbackModal.proxy_key},
    "mine": {"A_KEY": "a"},
}
OTHERS = (
    "deploy.app=other",
    "deploy.policy.gpu=[B200:2, H200:2]",
    "deploy.policy.regions=[us-east, eu-west]",
    "deploy.policy.cloud=oci",
    "deploy.policy.min_containers=0",
    "deploy.policy.max_containers=7",
    "deploy.policy.buffer_containers=2",
    "deploy.policy.target_concurrency=1.5",
    "deploy.policy.secrets=[{name: mine, required_keys: [A_KEY]}]",
    "deploy.gateway.min_containers=0",
    "deploy.gateway.auth=edge",
    "deploy.gateway.target_concurrency=10",
    "deploy.gateway.max_containers=3",
    "deploy.prefetch.secrets=[{name: mine, required_keys: [A_KEY]}]",
    "deploy.volumes.policies=p",
    "deploy.volumes.cache=c",
    "deploy.volumes.state=s",
    "deploy.image.apt=[git]",
    "deploy.image.extra_pip=[rich==15.0.0]",
    "deploy.image.cuda=13.0.0-devel-ubuntu24.04",
    "deploy.env={MY_VARIABLE: mine}",
    "deploy.routing_region=eu-west",
)


@pytest.fixture
def modal(tmp_path: Path) -> Iterator[LoopbackModal]:
    with LoopbackModal(tmp_path / "modal", secrets=SECRETS) as loopback:
        yield loopback


def sets(modal: LoopbackModal, *more: str) -> list[str]:
    """Nothing that stays up, and volumes where a test may mount them."""
    own = f"deploy.volumes.root={modal.root / 'mnt'}"
    return [f"--set={each}" for each in (own, "deploy.gateway.min_containers=0", *more)]


def resolved(path: Path, arguments: list[str]) -> ServingConfig:
    given = [each.removeprefix("--set=") for each in arguments]
    return load(path, sets=given, environ={})


@pytest.mark.parametrize(
    ("path", "more"),
    [(path, ()) for path in CONFIGS]
    + [(CONFIGS[0], OTHERS), (CONFIGS[0], ("deploy.snapshot=gpu", "deploy.app=snapped"))],
    ids=[*(path.stem for path in CONFIGS), "others", "snapshot"],
)
def test_what_modal_is_told_equals_the_config(
    modal: LoopbackModal, path: Path, more: tuple[str, ...]
) -> None:
    arguments = sets(modal, *more)
    done = modal.python("-m", "serve", "deploy", "--config", str(path), *arguments, timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    config = resolved(path, arguments)
    assert f"sha256:{config.digest}" in done.stdout
    app = modal.app(config.deploy.app)
    assert app.tags == {"component": "serve", "config": config.digest[:12]}
    assert (sorted(app.servers), sorted(app.functions)) == (["Gateway", "Policy"], ["prefetch"])
    policy, gateway = app.servers["Policy"], app.servers["Gateway"]
    prefetch = app.functions["prefetch"]
    compare_policy(policy, config)
    compare_gateway(gateway, config)
    assert (prefetch.cpu, prefetch.memory_mib, prefetch.timeout_s) == (
        config.deploy.prefetch.cpu,
        config.deploy.prefetch.memory_mib,
        config.deploy.prefetch.timeout_s,
    )
    compare_volumes(policy, plan.policy_volumes(config))
    compare_volumes(gateway, plan.gateway_volumes(config))
    compare_volumes(prefetch, plan.prefetch_volumes(config))
    for view in (policy, gateway, prefetch):
        assert set(plan.container_env(config).items()) <= set(view.env.items())
    compare_image(policy, images.engine_image(config))
    compare_image(gateway, images.light_image(config))


def compare_policy(view: ServerView, config: ServingConfig) -> None:
    wanted = config.deploy.policy
    assert view.gpus == list(wanted.gpu)
    compare_containers(view, config, wanted)
    assert (view.buffer_containers, view.target_concurrency, view.max_concurrency) == (
        wanted.buffer_containers,
        wanted.target_concurrency,
        wanted.max_concurrency,
    )
    assert view.scaleup_window == wanted.scaleup_window_s
    assert not view.unauthenticated
    assert view.snapshot == (config.deploy.snapshot != "off")
    assert view.gpu_snapshot == (config.deploy.snapshot == "gpu")
    assert view.required_keys == {each.name: list(each.required_keys) for each in wanted.secrets}


def compare_gateway(view: ServerView, config: ServingConfig) -> None:
    wanted = config.deploy.gateway
    assert view.gpus == []
    compare_containers(view, config, wanted)
    assert view.target_concurrency == (wanted.target_concurrency or 0)
    assert view.unauthenticated == (wanted.auth == "keys")
    expected = {each.name: list(each.required_keys) for each in plan.gateway_secrets(config)}
    assert view.required_keys == expected
    assert not view.snapshot


def compare_containers(view: ServerView, config: ServingConfig, wanted: object) -> None:
    section = config.deploy.policy if wanted is config.deploy.policy else config.deploy.gateway
    assert (view.cpu, view.memory_mib) == (section.cpu, section.memory_mib)
    assert (view.min_containers, view.max_containers) == (
        section.min_containers,
        section.max_containers or 0,
    )
    assert view.scaledown_window == section.scaledown_window_s
    assert view.startup_timeout_s == section.startup_timeout_s
    assert view.exit_grace_period_s == section.exit_grace_s
    assert view.regions == list(section.regions)
    assert view.routing_region == config.deploy.routing_region
    assert view.port == 8000


def compare_volumes(view: FunctionView, wanted: dict[str, tuple[str, bool]]) -> None:
    assert {path: (each.name, each.read_only) for path, each in view.volumes.items()} == wanted
    assert {each.version for each in view.volumes.values()} == {2}


def compare_image(view: FunctionView, wanted: images.ImagePlan) -> None:
    recipe = "\n".join(view.image)
    assert (wanted.base or "debian") in recipe or wanted.base is None
    for pin in (*wanted.pip, *wanted.pip_alone, *wanted.extra, *wanted.apt):
        assert pin in recipe
    assert ("--no-deps" in recipe) == bool(wanted.pip_alone)
    # The installer is the newest of Modal's choice; what it installs is pinned.
    assert ":latest" not in recipe.replace("astral-sh/uv:latest", "")
    paths = [PurePosixPath(path) for path in view.mounts]
    shipped = {path.relative_to(HOME).parts[0] for path in paths if path.is_relative_to(HOME)}
    assert {each for each in shipped if ".dist-info" not in each} == set(wanted.sources)
    names = {path.rpartition("/")[2] for path in view.mounts if ".dist-info" in path}
    assert names == {"METADATA", "entry_points.txt"}
    assert HOME / "serve/front/control/dashboard.html" in paths
    assert not any("__pycache__" in path or path.endswith(".pyc") for path in view.mounts)


def test_modals_own_command_deploys_the_same(modal: LoopbackModal) -> None:
    root = {"PALAESTRA_SERVE__DEPLOY__VOLUMES__ROOT": str(modal.root / "mnt")}
    none = {"PALAESTRA_SERVE__DEPLOY__GATEWAY__MIN_CONTAINERS": "0"}
    done = modal.cli("deploy", "-m", "serve.modal_app", env={**root, **none})
    assert done.returncode == 0, done.stdout + done.stderr
    config = resolved(CONFIGS[0].with_name("modal.yaml"), sets(modal))
    app = modal.app("palaestra")
    compare_policy(app.servers["Policy"], config)
    assert app.servers["Policy"].env["PALAESTRA_SERVE_CONFIG"] == config.to_json()


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ({}, ("palaestra-admin PALAESTRA_ADMIN_KEY=...", "palaestra-proxy")),
        ({"palaestra-admin": {"OTHER": "x"}}, ("palaestra-admin", "PALAESTRA_ADMIN_KEY")),
    ],
)
def test_a_missing_secret_is_one_clear_line(
    tmp_path: Path, secrets: dict[str, dict[str, str]], said: tuple[str, ...]
) -> None:
    with LoopbackModal(tmp_path / "modal", secrets=secrets) as modal:
        done = modal.python("-m", "serve", "deploy", *sets(modal))
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: a secret is missing or lacks a key: `modal secret create")
        assert all(each in line for each in said)
        assert modal.apps == []


def test_a_missing_volume_of_training_is_one_clear_line(modal: LoopbackModal) -> None:
    done = modal.python("-m", "serve", "deploy", *sets(modal, "deploy.volumes.runs=nobodys"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "there is no volume nobodys: a training run makes it" in done.stderr


@pytest.mark.parametrize("verb", ["urls", "scale", "stop", "smoke"])
def test_what_is_not_deployed_is_one_clear_line(modal: LoopbackModal, verb: str) -> None:
    more = ["--min", "1"] if verb == "scale" else []
    done = modal.python("-m", "serve", verb, *more, *sets(modal, "deploy.app=nothing"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "is it deployed?" in done.stderr


def test_without_a_token_it_says_what_to_run(modal: LoopbackModal) -> None:
    none = {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}
    done = modal.python("-m", "serve", "deploy", *sets(modal), env=none)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "run `modal setup`" in done.stderr


def test_scale_changes_the_replicas_until_the_next_deploy(modal: LoopbackModal) -> None:
    assert modal.python("-m", "serve", "deploy", *sets(modal)).returncode == 0
    done = modal.python("-m", "serve", "scale", "--max", "9", "--buffer", "2", *sets(modal))
    assert (done.returncode, done.stdout) == (
        0,
        "replicas: at least 0, at most 9, 2 in reserve\n",
    ), done.stderr
