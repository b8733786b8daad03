"""A deployment on Modal, from outside: make, look up, scale, stop. The door to Modal's client.

Every refusal of Modal's becomes one line that says what to do.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serve.deploy import plan
from serve.deploy.config import VARIABLE, ServingConfig
from serve.deploy.sections import SecretRef
from serve.errors import ConfigError, DeployError
from serve.models import is_hub_id, resolve

Say = Callable[[str], None]

_NO_CLIENT = "Modal's client is not installed here: pip install 'palaestra[modal]'"
_NOBODY = (
    "Modal does not know who asks: run `modal setup`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
)


def deploy(config: ServingConfig) -> str:
    """Deploy, and return the gateway's URL; raise ConfigError and DeployError."""
    with _modal() as modal:
        _ensure_secrets(modal, config)
        app = _app(config)
        with modal.enable_output():
            app.deploy()
        return _url(modal, config)


def prefetch(config: ServingConfig, say: Say) -> str:
    """Bring the model onto the cache volume, from the hub or from here; return what is there."""
    with _modal() as modal:
        _ensure_there(modal, config.deploy.prefetch.secrets)
        if not is_hub_id(config.model):
            _upload(modal, config, say)
        module = _module(config)
        with modal.enable_output(), module.prefetch_app.run():
            return str(module.prefetch.remote())


def url(config: ServingConfig) -> str:
    """Return the gateway's URL; raise DeployError where nothing is deployed."""
    with _modal() as modal:
        return _url(modal, config)


def scale(config: ServingConfig, **wanted: int | None) -> str:
    """Change how many replicas there are until the next deploy; return what holds now."""
    given = {key: value for key, value in wanted.items() if value is not None}
    with _modal() as modal:
        server = modal.Server.from_name(config.deploy.app, plan.POLICY_SERVER)
        found = server.autoscaler.update(**given)
        return (
            f"replicas: at least {found.min_containers or 0}, "
            f"at most {found.max_containers or 'any number'}, "
            f"{found.buffer_containers or 0} in reserve"
        )


def stop(config: ServingConfig) -> None:
    """Stop the app and all of its containers; volumes stay."""
    with _modal() as modal:
        modal.App.lookup(config.deploy.app).stop()


@contextlib.contextmanager
def _modal() -> Iterator[Any]:
    """Give Modal's client; say in a line what it refuses."""
    try:
        import modal  # noqa: PLC0415  # an extra, and heavy
    except ImportError:
        raise ConfigError(_NO_CLIENT) from None
    try:
        yield modal
    except modal.exception.AuthError:
        raise ConfigError(_NOBODY) from None
    except modal.exception.NotFoundError as error:
        raise ConfigError(f"{_line(error)}; is it deployed? python -m serve deploy") from None
    except modal.exception.Error as error:
        raise DeployError(f"Modal refused: {_line(error)}") from None


def _module(config: ServingConfig) -> Any:  # noqa: ANN401  # a module, once it has its config
    """Import the app with this config, which reaches it as it reaches a container."""
    os.environ[VARIABLE] = config.to_json()
    return importlib.import_module("serve.modal_app")


def _app(config: ServingConfig) -> Any:  # noqa: ANN401  # Modal's
    return _module(config).app


def _url(modal: Any, config: ServingConfig) -> str:  # noqa: ANN401  # Modal's
    server = modal.Server.from_name(config.deploy.app, plan.GATEWAY_SERVER)
    found = server.get_url()
    if not found:
        raise DeployError(f"the gateway of {config.deploy.app} has no URL yet; try again")
    return str(found)


def _ensure_secrets(modal: Any, config: ServingConfig) -> None:  # noqa: ANN401  # Modal's
    deploy = config.deploy
    _ensure_there(
        modal, (*plan.gateway_secrets(config), *deploy.policy.secrets, *deploy.prefetch.secrets)
    )
    if deploy.volumes.runs is not None:
        try:
            modal.Volume.from_name(deploy.volumes.runs).hydrate()
        except modal.exception.NotFoundError:
            raise ConfigError(
                f"there is no volume {deploy.volumes.runs}: a training run makes it, or "
                f"`modal volume create --version=2 {deploy.volumes.runs}`"
            ) from None


def _ensure_there(modal: Any, secrets: tuple[SecretRef, ...]) -> None:  # noqa: ANN401  # Modal's
    """Raise ConfigError with one line for all that are missing."""
    missing = []
    for secret in dict.fromkeys(secrets):
        try:
            modal.Secret.from_name(secret.name, required_keys=list(secret.required_keys)).hydrate()
        except (modal.exception.NotFoundError, modal.exception.InvalidError) as error:
            keys = " ".join(f"{key}=..." for key in secret.required_keys)
            missing.append(f"`modal secret create {secret.name} {keys}` ({_line(error)})")
    if missing:
        raise ConfigError(f"a secret is missing or lacks a key: {'; '.join(missing)}")


def _upload(modal: Any, config: ServingConfig, say: Say) -> None:  # noqa: ANN401  # Modal's
    folder, _ = resolve(config.model)
    target = "/" + str(config.folder)
    volume = modal.Volume.from_name(config.deploy.volumes.cache, create_if_missing=True, version=2)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    size_mb = sum(path.stat().st_size for path in files) / 1e6
    say(f"uploading {folder}: {len(files)} files, {size_mb:.1f} MB")
    with volume.batch_upload(force=True) as batch:
        # What makes the folder whole goes last.
        for path in sorted(files, key=lambda path: path.name == "config.json"):
            batch.put_file(path, f"{target}/{path.relative_to(Path(folder)).as_posix()}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
