"""What a gateway can be told: one frozen config from YAML and the command line, and its rules.

`serve.config` has what a single engine can be told, and reads the environment.
"""

import logging
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve.config import cache_dir, secret_from
from serve.errors import ConfigError
from serve.pool.routing import Routing
from serve.wire import BadReference, PolicyRef

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_OURS = frozenset("--host --port --uds --model --served-model-name --api-key".split())
_S = TypeVar("_S", bound=BaseModel)
_UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_OF_ENGINES = {"name", "replicas", "max_replicas", "engine", "scaling"}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _upstream(url: str) -> str:
    parts = urlsplit(url)
    is_bare = parts.path.strip("/") in ("", "v1") and not (parts.query or parts.fragment)
    is_ours = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    if not (is_ours and is_bare):
        raise ValueError(f"expected http://HOST:PORT or https://HOST, got {url!r}")
    if parts.port == 0:  # a ValueError by itself where it is no port at all
        raise ValueError(f"expected a port from 1 to 65535, got {url!r}")
    return f"{parts.scheme}://{parts.netloc}"


def _address(text: str) -> str:
    return str(ip_address(text))


def _not_ours(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if word.partition("=")[0] in _OURS:
            raise ValueError(f"{word} is not for vLLM to be told: engines stay on loopback")
    return words


def _is_program(words: tuple[str, ...]) -> tuple[str, ...]:
    said = " ".join(words)
    if words and not all(f"{{{name}}}" in said for name in ("model", "port")):
        raise ValueError(f"expected {{model}} and {{port}} among its words, got {said!r}")
    return words


def _factory(text: str) -> str:
    if not _FACTORY.fullmatch(text):
        raise ValueError(f"expected MODULE:FACTORY, such as train.service:router, got {text!r}")
    return text


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
    program: Annotated[tuple[str, ...], AfterValidator(_is_program)] = ()
    """Another server than vLLM that speaks as it does; see `serve.engine.command`."""


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


class RemoteConfig(_Settings):
    """How replicas elsewhere are asked. Secrets are environment variables, by their names."""

    key_env: str | None = None
    """Holds the key that goes as `Authorization: Bearer`; a client's own never does."""
    proxy_id_env: str | None = None
    """Holds what goes as `Modal-Key`, for servers that want a proxy token."""
    proxy_secret_env: str | None = None
    """Holds what goes as `Modal-Secret`."""
    ca: _UserPath | None = None
    """The certificates to believe with https, instead of the system's."""
    look_s: float = Field(default=1.0, gt=0)
    """How often gateways among them are asked which versions they serve."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return what each of them is told besides; raise ConfigError for an unset variable."""
        sent = []
        if self.key_env is not None:
            sent.append(("authorization", f"Bearer {secret_from(self.key_env, 'remote.key_env')}"))
        if self.proxy_id_env is not None and self.proxy_secret_env is not None:
            sent += [
                ("modal-key", secret_from(self.proxy_id_env, "remote.proxy_id_env")),
                ("modal-secret", secret_from(self.proxy_secret_env, "remote.proxy_secret_env")),
            ]
        return tuple(sent)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.proxy_id_env is None) != (self.proxy_secret_env is None):
            raise ValueError("proxy_id_env and proxy_secret_env belong together")
        return self


class ModalConfig(_Settings):
    """A deployed Modal server whose containers are gateways of ours: one replica each."""

    app: str = Field(min_length=1)
    server: str = Field(min_length=1)
    """The name of its class."""
    environment: str | None = None
    poll_s: float = Field(default=2.0, gt=0)
    """How often Modal is asked for the containers."""
    quiet_after_s: float = Field(default=20.0, ge=0)
    """Without requests for so long, containers are asked nothing, so that Modal can stop them."""
    drain_s: float = Field(default=600.0, ge=0)
    """How long requests on a container may take that Modal does not list any more."""


class VolumeConfig(_Settings):
    """A Modal volume that holds the policies: reloaded before they are read, then committed."""

    name: str = Field(min_length=1)
    environment: str | None = None
    root: _UserPath | None = None
    """Where it is mounted; None is the folder of the policies itself."""


class ServeConfig(_Settings):
    """Everything that `serve up` can be told."""

    model: str | None = None
    """A folder, a pulled name, or a hub id; None for a pool of upstreams or of containers."""
    name: str | None = None
    upstreams: tuple[Annotated[str, AfterValidator(_upstream)], ...] = ()
    modal: ModalConfig | None = None
    remote: RemoteConfig = RemoteConfig()
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, lt=65_536)
    state: _UserPath = Field(default_factory=lambda: cache_dir() / "state")
    policies: _UserPath | None = None
    """Where the policies are kept; None is `policies` in the state folder."""
    policies_read_only: bool = False
    """Only follow what another gateway publishes there."""
    volume: VolumeConfig | None = None
    edge_tls: bool = False
    """Whether everybody comes through somebody who speaks HTTPS with them, such as Modal's edge."""
    edge_auth: bool = False
    """Whether that one also proves who they are: then no key is needed beyond loopback."""
    mounts: tuple[Annotated[str, AfterValidator(_factory)], ...] = ()
    """Further routers for the control plane, each as MODULE:FACTORY."""
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
    def policies_root(self) -> Path:
        """The folder of the policies."""
        return self.policies or self.state / "policies"

    @property
    def most_replicas(self) -> int:
        """The most replicas there may be."""
        return max(self.max_replicas or 0, self.replicas)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sources = (self.model is not None, bool(self.upstreams), self.modal is not None)
        if sum(sources) != 1:
            raise ValueError("give either --model or --upstream, or `modal` in the config file")
        if len(set(self.upstreams)) < len(self.upstreams):
            raise ValueError(f"an upstream is given twice: {', '.join(self.upstreams)}")
        if idle := self.model_fields_set & _OF_ENGINES if self.model is None else None:
            raise ValueError(f"{', '.join(sorted(idle))}: only for engines started with --model")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, replicas {self.replicas}")
        if self.model is not None and self.most_replicas == 0:
            raise ValueError("max_replicas must be at least 1")
        if self.volume is not None and self.policies is None:
            raise ValueError("volume: say with `policies` which of its folders they are in")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        return self


def load(path: Path | None, overrides: Mapping[str, Any]) -> ServeConfig:
    """Read a config from YAML, if there is one, under `overrides`; raise ConfigError.

    An override is a value for a key, or a mapping of values for the keys of a section. None is no
    override. Without a `hold_s`, requests are held as long as a replica needs to start: 300 s, or
    900 s for a container; or 15 s where nobody starts any.
    """
    values = _read(path) if path else {}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            section = {inner: given for inner, given in value.items() if given is not None}
            if section:
                values[key] = {**_section(values, key, path), **section}
        elif value is not None:
            values[key] = value
    for source, hold_s in (("upstreams", 15.0), ("modal", 900.0)):
        if values.get(source):
            values["front"] = {"hold_s": hold_s, **_section(values, "front", path)}
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
