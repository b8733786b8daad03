"""What a gateway can be told: one frozen config from YAML and the command line, and its rules.

`serve.config` has what a single engine can be told, and reads the environment.
"""

import logging
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve.config import cache_dir
from serve.errors import ConfigError
from serve.pool.routing import Routing
from serve.wire import BadReference, PolicyRef

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_OURS = frozenset("--host --port --uds --model --served-model-name --api-key".split())
_S = TypeVar("_S", bound=BaseModel)
_UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
_OF_ENGINES = {"name", "replicas", "max_replicas", "engine", "scaling"}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _upstream(url: str) -> str:
    parts = urlsplit(url)
    is_bare = parts.path.strip("/") in ("", "v1") and not (parts.query or parts.fragment)
    if parts.scheme != "http" or not parts.hostname or "@" in parts.netloc or not is_bare:
        raise ValueError(f"expected http://HOST:PORT, got {url!r}")
    if parts.port == 0:  # a ValueError by itself where it is no port at all
        raise ValueError(f"expected a port from 1 to 65535, got {url!r}")
    return f"http://{parts.netloc}"


def _address(text: str) -> str:
    return str(ip_address(text))


def _not_ours(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if word.partition("=")[0] in _OURS:
            raise ValueError(f"{word} is not for vLLM to be told: engines stay on loopback")
    return words


def _reference(text: str) -> str:
    try:
        return str(PolicyRef.parse(text))
    except BadReference as error:
        raise ValueError(str(error)) from None


class FrontConfig(_Settings):
    """Bounds of what clients may ask for and how long anything may take."""

    max_body_bytes: int = Field(default=64 * _MIB, ge=1024)
    max_connections: int = Field(default=20_000, ge=1)
    max_held: int = Field(default=10_000, ge=0)
    """Requests that may wait for a replica at once."""
    hold_s: float = Field(default=300.0, ge=0)
    """How long a request waits for a replica before it gets 503."""
    head_timeout_s: float = Field(default=20.0, gt=0)
    body_timeout_s: float = Field(default=20.0, gt=0)
    """How long a body may make no progress."""
    idle_timeout_s: float = Field(default=75.0, gt=0)
    stall_timeout_s: float = Field(default=300.0, gt=0)
    """How long an engine's stream may be silent."""
    write_stall_s: float = Field(default=60.0, gt=0)
    """How long a client may not read."""
    grace_s: float = Field(default=30.0, ge=0)
    """How long requests in flight may take when the gateway stops."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_address)], ...] = ()
    """Addresses whose X-Forwarded-Proto is believed."""


class EngineSettings(_Settings):
    """What every vLLM of a local pool is told."""

    max_model_len: int | None = Field(default=None, ge=1)
    lora: bool = False
    """Serve LoRA versions beside the full one."""
    max_loras: int = Field(default=4, ge=1)
    max_lora_rank: int = Field(default=16, ge=1)
    swappable: bool = True
    """Take new weights while it runs."""
    extra_args: Annotated[tuple[str, ...], AfterValidator(_not_ours)] = ()
    """Put last on vLLM's command line, so they win."""


class HealthConfig(_Settings):
    """How replicas are probed."""

    interval_s: float = Field(default=1.0, gt=0)
    down_interval_s: float = Field(default=0.25, gt=0)
    timeout_s: float = Field(default=2.0, gt=0)
    failures: int = Field(default=2, ge=1)
    """So many failed probes in a row take a replica out."""
    wedge_s: float = Field(default=300.0, gt=0)
    """So long without any progress of its requests takes one out whose probes are good."""


class ScalingConfig(_Settings):
    """When a local pool grows and shrinks."""

    target_in_flight: int = Field(default=32, ge=1)
    """Requests per replica from which another one is started."""
    up_after_s: float = Field(default=5.0, ge=0)
    down_after_s: float = Field(default=120.0, ge=0)
    idle_to_zero_s: float | None = Field(default=None, gt=0)
    """Stop the last replica after so long without a request; None never does."""


class Split(_Settings):
    """A share of the requests for a policy that goes to one of its versions."""

    version: int = Field(ge=1)
    share: float = Field(ge=0, le=1)


class RoutingRules(_Settings):
    """Who answers under which name; read again whenever the file changes."""

    aliases: dict[str, Annotated[str, AfterValidator(_reference)]] = Field(default_factory=dict)
    """Other names: `prod: key-door@7`."""
    canary: dict[str, Split] = Field(default_factory=dict)
    """Policy -> the version that gets a share of its requests instead of the newest."""
    shadow: dict[str, Split] = Field(default_factory=dict)
    """Policy -> the version that gets copies of a share of its requests; answers are dropped."""

    def versions(self) -> dict[str, set[int]]:
        """Return the versions that the rules name: adapters among them stay loaded."""
        named: dict[str, set[int]] = {}
        for target in map(PolicyRef.parse, self.aliases.values()):
            if target.version is not None:
                named.setdefault(target.name, set()).add(target.version)
        for name, split in (*self.canary.items(), *self.shadow.items()):
            named.setdefault(name, set()).add(split.version)
        return named

    @model_validator(mode="after")
    def _aliases_end(self) -> Self:
        for alias, target in self.aliases.items():
            if PolicyRef.parse(target).name in self.aliases:
                raise ValueError(f"aliases: {alias} points to {target}, which is an alias itself")
        return self


class ServeConfig(_Settings):
    """Everything that `serve up` can be told."""

    model: str | None = None
    """A folder, a pulled name, or a hub id; None for a pool of upstreams."""
    name: str | None = None
    upstreams: tuple[Annotated[str, AfterValidator(_upstream)], ...] = ()
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, lt=65_536)
    state: _UserPath = Field(default_factory=lambda: cache_dir() / "state")
    replicas: int = Field(default=1, ge=0)
    """The fewest, and how many are started."""
    max_replicas: int | None = Field(default=None, ge=1)
    routing: Routing = Routing.STICKY
    access_log: _UserPath | None = None
    tracing: str | None = None
    """Where OpenTelemetry's spans go, such as http://HOST:4318/v1/traces."""
    tls_cert: _UserPath | None = None
    tls_key: _UserPath | None = None
    engine: EngineSettings = EngineSettings()
    front: FrontConfig = FrontConfig()
    health: HealthConfig = HealthConfig()
    scaling: ScalingConfig = ScalingConfig()
    rules: RoutingRules = RoutingRules()

    @property
    def most_replicas(self) -> int:
        """The most replicas there may be."""
        return max(self.max_replicas or 0, self.replicas)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.model is None) == (not self.upstreams):
            raise ValueError("give either --model or --upstream")
        if len(set(self.upstreams)) < len(self.upstreams):
            raise ValueError(f"an upstream is given twice: {', '.join(self.upstreams)}")
        if idle := self.model_fields_set & _OF_ENGINES if self.upstreams else None:
            raise ValueError(f"{', '.join(sorted(idle))}: only for engines started with --model")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, replicas {self.replicas}")
        if self.model is not None and self.most_replicas == 0:
            raise ValueError("max_replicas must be at least 1")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        return self


def load(path: Path | None, overrides: Mapping[str, Any]) -> ServeConfig:
    """Read a config from YAML, if there is one, under `overrides`; raise ConfigError.

    An override is a value for a key, or a mapping of values for the keys of a section. None is no
    override. Without a `hold_s`, requests are held as long as a replica needs to start, or 15 s
    where nobody starts any.
    """
    values = _read(path) if path else {}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            section = {inner: given for inner, given in value.items() if given is not None}
            if section:
                values[key] = {**_section(values, key, path), **section}
        elif value is not None:
            values[key] = value
    if values.get("upstreams"):
        values["front"] = {"hold_s": 15.0, **_section(values, "front", path)}
    return _checked(ServeConfig, values, path)


def _section(values: dict[str, Any], key: str, path: Path | None) -> dict[str, Any]:
    section = values.get(key, {})
    if not isinstance(section, dict):
        raise ConfigError(f"config {path}: {key}: expected keys and values, got {section!r}")
    return section


def _read(path: Path) -> dict[str, Any]:
    """Return the keys that have a value: a section may be empty."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config {path}: expected keys and values, got {type(values).__name__}")
    return {key: value for key, value in values.items() if value is not None}


def _checked(kind: type[_S], values: dict[str, Any], path: Path | None) -> _S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = "there is no such key"
        shown = f"{place}: {said}" if place else said
        raise ConfigError(f"config {path}: {shown}" if path else shown) from None


class RulesFile:
    """The rules in a config file, read again when it changes. A broken file changes nothing."""

    def __init__(self, path: Path, rules: RoutingRules) -> None:
        self.rules = rules
        self.problem = ""
        """What is wrong with the file as it is now."""
        self._path = path
        self._seen: tuple[int, int, int] | None = (0, 0, 0)
        """As no file looks: it may have changed since `rules` were read."""

    def look(self) -> bool:
        """Read the file if it changed; return whether there are new rules. Reads the disk."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            rules = _checked(RoutingRules, _read(self._path).get("rules", {}), self._path)
        except ConfigError as error:
            self.problem = str(error)
            logger.warning("the rules stay as they were: %s", error)
            return False
        self.problem = ""
        changed = rules != self.rules
        self.rules = rules
        return changed

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
