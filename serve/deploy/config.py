"""What a deployment can be told: one frozen config, from four places, with a digest.

    command line  >  environment (PALAESTRA_SERVE__DEPLOY__APP=...)  >  YAML  >  default

A container gets the resolved config as JSON in $PALAESTRA_SERVE_CONFIG and reads nothing else, so
that it builds the same objects as the machine that deployed it. Knows no Modal.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from serve.deploy.sections import DeployConfig, GatewayAuth, Settings, Snapshot
from serve.errors import ConfigError
from serve.models import is_hub_id
from serve.pool.routing import Routing
from serve.settings import EngineSettings, FrontConfig, HealthConfig, RoutingRules

VARIABLE = "PALAESTRA_SERVE_CONFIG"
"""A path to YAML, or a resolved config as JSON."""
PREFIX = "PALAESTRA_SERVE__"
_HOLD_S = 900.0
SHIPPED = Path(__file__).parent.parent / "configs"
DEFAULT = SHIPPED / "modal.yaml"


class ServingConfig(Settings):
    """A policy's serving, wherever it runs; `deploy` says on what."""

    model: str
    """A hub id ORG/NAME, or a folder or pulled name here, which `prefetch` uploads."""
    revision: str | None = None
    """The hub's commit, tag or branch; None is its newest when it is prefetched."""
    name: str | None = None
    """What requests call it; None is the model's own name."""
    routing: Routing = Routing.STICKY
    engine: EngineSettings = EngineSettings()
    front: FrontConfig = FrontConfig()
    """Of the gateway; what replicas do follows from it."""
    health: HealthConfig = HealthConfig()
    rules: RoutingRules = RoutingRules()
    deploy: DeployConfig = DeployConfig()

    @model_validator(mode="before")
    @classmethod
    def _holds(cls, values: Any) -> Any:  # noqa: ANN401  # whatever YAML holds
        """Hold requests as long as a cold container may take, unless that is said."""
        if not isinstance(values, dict) or not isinstance(values.get("front", {}), dict):
            return values
        return {**values, "front": {"hold_s": _HOLD_S, **values.get("front", {})}}

    @property
    def policy_name(self) -> str:
        """What requests call it."""
        return self.name or (self.model if is_hub_id(self.model) else Path(self.model).name)

    @property
    def folder(self) -> PurePosixPath:
        """Where the model lies in the cache volume, below its root."""
        if not is_hub_id(self.model):
            return PurePosixPath("models", Path(self.model).name)
        return PurePosixPath("models", f"{self.model.replace('/', '--')}@{self.revision or 'main'}")

    @property
    def digest(self) -> str:
        """The SHA-256 of everything that was resolved."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the resolved config, in one way only."""
        values = self.model_dump(mode="json")
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @model_validator(mode="after")
    def _fits(self) -> "ServingConfig":
        deploy = self.deploy
        if self.revision and not is_hub_id(self.model):
            raise ValueError(f"revision: only for a hub id ORG/NAME, and the model is {self.model}")
        if self.revision and "/" in self.revision:
            raise ValueError(f"revision: expected one without a slash, got {self.revision!r}")
        if deploy.snapshot is Snapshot.GPU and deploy.policy.gpus_each != 1:
            raise ValueError(
                "deploy.snapshot: gpu works with a single GPU, and deploy.policy.gpu is "
                f"{list(deploy.policy.gpu)}"
            )
        if deploy.snapshot is Snapshot.CPU and deploy.policy.gpu:
            raise ValueError("deploy.snapshot: cpu is for policies without a GPU; try gpu")
        gateway = deploy.gateway
        if gateway.auth is GatewayAuth.KEYS and gateway.target_concurrency is not None:
            raise ValueError(
                "deploy.gateway.target_concurrency: keys and usage live in one gateway; "
                "leave it out, or take auth: edge"
            )
        return self


def load(
    path: Path | None = None,
    *,
    sets: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> ServingConfig:
    """Resolve a config; raise ConfigError. `sets` are `a.b=c` with YAML values, and win.

    Without a path it is the one that $PALAESTRA_SERVE_CONFIG names, or configs/modal.yaml.
    """
    environ = os.environ if environ is None else environ
    given = environ.get(VARIABLE, "")
    if path is None and given.lstrip().startswith("{"):
        return _checked(_json(given), f"${VARIABLE}")
    path = path or (Path(given) if given else DEFAULT)
    values = _read(path)
    for name, text in sorted(environ.items()):
        if name.startswith(PREFIX):
            _put(values, name.removeprefix(PREFIX).lower().split("__"), _value(text, name), name)
    for key, value in (flags or {}).items():
        if value is not None:
            _put(values, key.split("."), value, key)
    for each in sets:
        key, equals, text = each.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {each}: expected KEY=VALUE, such as deploy.app=mine")
        _put(values, key.split("."), _value(text, f"--set {key}"), f"--set {key}")
    return _checked(values, str(path))


def load_dotenv(path: Path = Path(".env")) -> None:
    """Set what `.env` says in the environment, where that says nothing; no file is no error."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and name and not name.startswith("#"):
            os.environ.setdefault(name.strip(), value.strip().strip("\"'"))


def environment(name: str) -> str:
    """Return a variable of the environment, empty if it is not set."""
    return os.environ.get(name, "")


def port() -> int:
    """Return the port that a container's server listens on: $PALAESTRA_PORT, else 8000."""
    return int(os.environ.get("PALAESTRA_PORT") or 8000)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config {path}: expected keys and values, got {type(values).__name__}")
    return values


def _json(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"${VARIABLE}: expected JSON or a path, got {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"${VARIABLE}: expected keys and values, got {type(values).__name__}")
    return values


def _value(text: str, place: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: {' '.join(str(error).split())}") from None


def _put(values: dict[str, Any], keys: list[str], value: object, place: str) -> None:
    for key in keys[:-1]:
        inner = values.get(key)
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{place}: {key} has no keys of its own, it is {inner!r}")
        values = inner
    values[keys[-1]] = value


def _checked(values: dict[str, Any], place: str) -> ServingConfig:
    try:
        return ServingConfig.model_validate(_without_nothing(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = "there is no such key"
        raise ConfigError(f"config {place}: {f'{key}: ' if key else ''}{said}") from None


def _without_nothing(values: dict[str, Any]) -> dict[str, Any]:
    """Return the keys whose section is not empty: `engine:` alone is the default."""
    empty = {"engine", "front", "health", "rules", "deploy"}
    return {key: value for key, value in values.items() if not (key in empty and value is None)}
