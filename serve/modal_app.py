"""The policy and its gateway on Modal: `modal deploy -m serve.modal_app`, or `serve deploy`.

Translates `serve.deploy.plan` into Modal's objects and decides nothing. A container imports this
module again and must find the same objects: its config comes whole in $PALAESTRA_SERVE_CONFIG.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import modal

from serve.deploy import images, plan
from serve.deploy.arguments import KEY_VARIABLE
from serve.deploy.config import ServingConfig, environment, load, load_dotenv
from serve.deploy.images import ImagePlan
from serve.deploy.sections import SecretRef, Snapshot

if modal.is_local():
    load_dotenv()
CONFIG = load()
_HOME = PurePosixPath("/", "root")  # where Modal puts sources
_SNAPSHOT = CONFIG.deploy.snapshot is not Snapshot.OFF


_Mounts = dict[str | PurePosixPath, modal.Volume | modal.CloudBucketMount]


def _volumes(wanted: Mapping[str, tuple[str, bool]]) -> _Mounts:
    mounted: _Mounts = {}
    for path, (name, is_read_only) in wanted.items():
        volume = _volume(name)
        mounted[path] = volume.with_mount_options(read_only=True) if is_read_only else volume
    return mounted


def _volume(name: str) -> modal.Volume:
    # A volume of training's is not ours to make.
    is_ours = name != CONFIG.deploy.volumes.runs
    return modal.Volume.from_name(name, create_if_missing=is_ours, version=2 if is_ours else None)


def _secrets(wanted: Iterable[SecretRef]) -> list[modal.Secret]:
    return [
        modal.Secret.from_name(each.name, required_keys=list(each.required_keys)) for each in wanted
    ]


def _image(plan_of_it: Callable[[ServingConfig], ImagePlan]) -> modal.Image:
    """Build what is planned; a container, whose image is there, has no plan and needs none.

    Our sources come last, so that a change of them builds nothing. The two files of metadata make
    `importlib.metadata` find our version, and vLLM our plugin, where we are not installed.
    """
    if not modal.is_local():
        return modal.Image.debian_slim(python_version="3.11")
    wanted = plan_of_it(CONFIG)
    if wanted.base is None:
        image = modal.Image.debian_slim(python_version="3.11")
    else:
        image = modal.Image.from_registry(wanted.base, add_python="3.11").entrypoint([])
    image = image.apt_install(*wanted.apt).uv_pip_install(*wanted.pip)
    image = image.uv_pip_install(*wanted.pip_alone, extra_options="--no-deps")
    image = image.uv_pip_install(*wanted.extra).env(plan.container_env(CONFIG))
    ours = metadata.distribution("palaestra")
    folder = f"palaestra-{ours.version}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        path = Path(str(ours.locate_file(f"{folder}/{name}")))
        image = image.add_local_file(path, str(_HOME / folder / name))
    return image.add_local_python_source(*wanted.sources, ignore=["**/__pycache__", "**/*.pyc"])


app = modal.App(
    CONFIG.deploy.app,
    include_source=False,
    tags={"component": "serve", "config": CONFIG.digest[:12]},
)
prefetch_app = modal.App(f"{CONFIG.deploy.app}-prefetch", include_source=False)
light = _image(images.light_image)
policies = _volume(CONFIG.deploy.volumes.policies)
state = _volume(CONFIG.deploy.volumes.state)
cache = _volume(CONFIG.deploy.volumes.cache)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _give_up() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@app.server(
    image=_image(images.engine_image),
    volumes=_volumes(plan.policy_volumes(CONFIG)),
    secrets=_secrets(CONFIG.deploy.policy.secrets),
    **plan.policy_server(CONFIG),
)
class Policy:
    """A replica: one engine behind a gateway of its own, which follows the published versions."""

    @modal.enter(snap=_SNAPSHOT)
    def start(self) -> None:
        """Start the engine, and return once it answers."""
        from serve.deploy.container import PolicyContainer  # noqa: PLC0415  # only there

        reload = {"the policies": policies.reload}
        self.container = PolicyContainer(CONFIG, reload=reload, give_up=_give_up)
        self.container.start()
        if _SNAPSHOT:
            self.container.sleep()
        else:
            self.container.wake()

    if _SNAPSHOT:

        @modal.enter()
        def wake(self) -> None:
            """Go on from the snapshot."""
            self.container.wake()

    @modal.exit()
    def stop(self) -> None:
        """Let requests in flight finish, then end."""
        self.container.stop()


@app.server(
    image=light,
    volumes=_volumes(plan.gateway_volumes(CONFIG)),
    secrets=_secrets(plan.gateway_secrets(CONFIG)),
    **plan.gateway_server(CONFIG),
)
class Gateway:
    """The front door: keys, limits, publishing; holds requests while replicas start."""

    @modal.enter()
    def start(self) -> None:
        """Start the gateway, and return once it listens."""
        from serve.deploy.container import GatewayContainer  # noqa: PLC0415  # only there

        runs = CONFIG.deploy.volumes.runs
        reload = {} if runs is None else {"the runs": _volume(runs).reload}
        self.container = GatewayContainer(
            CONFIG, commit_state=state.commit, reload=reload, give_up=_give_up
        )
        self.container.start()
        self.container.wake()

    @modal.exit()
    def stop(self) -> None:
        """Let requests in flight finish, and keep the accounts."""
        self.container.stop()


@prefetch_app.function(
    image=light,
    volumes=_volumes(plan.prefetch_volumes(CONFIG)),
    secrets=_secrets(CONFIG.deploy.prefetch.secrets),
    **plan.prefetch_function(CONFIG),
)
def prefetch() -> str:
    """Bring the model into the cache volume and register it; no GPU waits for the download."""
    from serve.deploy.prefetch import prefetch as bring  # noqa: PLC0415  # the store of policies

    line = bring(CONFIG, _say)
    cache.commit()
    policies.commit()
    return line


@app.local_entrypoint()
def smoke(timeout_s: float = 900.0) -> None:
    """Ask the gateway of this app for one chat and one stream; $PALAESTRA_API_KEY is its key."""
    from serve.deploy import smoke_test  # noqa: PLC0415  # only for this

    server: Any = Gateway  # the decorator makes it one
    url = server.get_url()
    if url is None:
        raise SystemExit("error: the gateway has no URL yet")
    key = environment(KEY_VARIABLE)
    for line in smoke_test.check(url, key, CONFIG.policy_name, within_s=timeout_s):
        _say(line)


app.include(prefetch_app, inherit_tags=False)
