"""What a run is asked to do: one frozen config, from YAML, the command line or Python.

Importing this module costs pydantic: it is imported when a run is about to start, not for `--help`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, Literal, Self

import orjson
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from evalkit.environment import variable
from evalkit.errors import BadConfig
from evalkit.judge.deciding import Deciding
from evalkit.judge.sequential import StoppingRule
from evalkit.play.strategies import ALL_STRATEGIES, parse_strategy
from evalkit.specs import BASELINES, MAX_SEEDS, ModelSpec, parse_model, parse_price, parse_seeds

RESERVED = (
    *("messages", "model", "n", "seed", "stream"),
    *("temperature", "top_p", "max_tokens", "structured_outputs"),
)
"""Fields of a request that evalkit decides, or that have a setting of their own."""
INCIDENTAL = (
    *("concurrency", "out", "timeout_s", "wait_s", "attempts", "api_key_env", "price"),
    "wandb",
)
"""Settings that cannot change a trajectory; they are left out of the config's digest."""
STOPPING = ("stop_on", "alpha", "margin", "span")
"""Settings of `stop`; without it only the margin means something, and changes no trajectory."""
AUTO = "auto"
"""As `concurrency`: what each server turns out to like best."""
AT_ONCE = 64
"""Episodes at once where nothing is said, and under `auto` where no server is asked."""
BUDGET_SEEDS = 2_000
"""Seeds that a run with `stop` may take where nothing is said."""


def _strategies(value: object) -> tuple[str, ...]:
    texts = _texts(value)
    parts = [part for text in texts for part in re.split(r",(?![^(]*\))", text)]
    if any(part.strip().lower() == "all" for part in parts):
        if len(parts) > 1:
            raise ValueError("all is every strategy: name no others beside it")
        parts = list(ALL_STRATEGIES)
    names = tuple(str(parse_strategy(part)) for part in parts)
    if len(set(names)) != len(names):
        raise ValueError(f"a strategy is named twice: {', '.join(names)}")
    return names


def _models(value: object) -> tuple[str, ...]:
    texts = _texts(value)
    specs = [parse_model(text) for text in texts]
    labels = [name for spec in specs if (name := spec.label or spec.baseline)]
    if not specs or len(specs) > len(ascii_uppercase):
        raise ValueError(f"expected 1 to {len(ascii_uppercase)} models, found {len(specs)}")
    if len(set(labels)) != len(labels):
        raise ValueError(
            f"two models go by the same name ({', '.join(labels)}): label them A=..., B=..."
        )
    return texts


def _guided(value: object) -> tuple[bool, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    words = [part for item in values for part in str(item).lower().split(",")]
    known = {"on": True, "true": True, "off": False, "false": False}
    unknown = [word for word in words if word not in known]
    flags = tuple(known[word] for word in words if word in known)
    if unknown or len(set(flags)) != len(flags):
        raise ValueError(f"guided is on, off, or off,on for both as arms; not {value!r}")
    return flags


def _extra_body(value: dict[str, Any]) -> dict[str, Any]:
    taken = [name for name in RESERVED if name in value]
    if taken:
        raise ValueError(
            f"{', '.join(taken)} cannot be set: evalkit decides it, or has a setting for it"
        )
    return value


def _deciding(value: object) -> Deciding | None:
    if value is None:
        return None
    for deciding in Deciding:
        if value == deciding:
            return deciding
    raise ValueError(f"expected one of {', '.join(Deciding)}, not {value!r}")


def _prices(value: object) -> tuple[str, ...]:
    texts = _texts(value)
    labels = [parse_price(text)[0] for text in texts]
    if len(set(labels)) != len(labels):
        raise ValueError(f"one price for each model, or one for all: not {', '.join(texts)}")
    return texts


def _concurrency(value: object) -> object:
    if value == AUTO or (type(value) is int and 1 <= value <= 10_000):
        return value
    raise ValueError(f"expected {AUTO} or a whole number from 1 to 10000, not {value!r}")


def _path(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _texts(value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
        raise ValueError(f"expected a text or a list of texts, not {value!r}")
    return tuple(values)


Concurrency = int | Literal["auto"]
"""Episodes at once."""


class RunConfig(BaseModel):
    """Everything that decides what a run does. Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    model: Annotated[tuple[str, ...], BeforeValidator(_models)]
    env: str = Field(min_length=1)
    env_args: dict[str, Any] = Field(default_factory=dict)
    strategy: Annotated[tuple[str, ...], BeforeValidator(_strategies)] = ("NO_HISTORY",)
    guided: Annotated[tuple[bool, ...], BeforeValidator(_guided)] = (False,)
    seeds: Annotated[tuple[int, ...], BeforeValidator(parse_seeds)] = tuple(range(100))
    k: int = Field(default=1, ge=1)
    temperature: float | None = Field(default=0.1, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=256, ge=1)
    extra_body: Annotated[dict[str, Any], AfterValidator(_extra_body)] = Field(default_factory=dict)
    keep_reasoning: bool = False
    run_seed: int = Field(default=0, ge=0)
    stop: Literal["decided"] | None = None
    stop_on: Annotated[Deciding | None, BeforeValidator(_deciding)] = None
    alpha: float | None = Field(default=None, gt=0, lt=1)
    margin: float | None = Field(default=None, gt=0)
    span: float | None = Field(default=None, gt=0)
    concurrency: Annotated[Concurrency, BeforeValidator(_concurrency)] = AT_ONCE
    attempts: int = Field(default=6, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)
    wait_s: float | None = Field(default=None, ge=0)
    api_key_env: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    price: Annotated[tuple[str, ...], BeforeValidator(_prices)] = ()
    out: Annotated[str, BeforeValidator(_path)] = "results"
    wandb: str | None = Field(default=None, min_length=1)

    @classmethod
    def read(cls, values: Mapping[str, Any], source: str = "config") -> RunConfig:
        """Check `values`.

        Raises:
            BadConfig: one line that names the setting, what was expected and what was found.

        """
        try:
            config = cls(**values)
        except ValidationError as error:
            raise BadConfig(f"{source}: {_first_problem(error, cls)}") from error
        try:
            orjson.dumps(config.model_dump(mode="json"))
        except (TypeError, ValueError) as error:
            raise BadConfig(f"{source}: a setting cannot be written as JSON: {error}") from error
        return config

    @model_validator(mode="before")
    @classmethod
    def _stop_has_a_budget(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read `max_seeds` as the seeds 0 to max_seeds - 1, and fill in what `stop` leaves open."""
        kept = {key: value for key, value in values.items() if key != "max_seeds"}
        most = values.get("max_seeds")
        stops = kept.get("stop") is not None
        if most is not None and not stops:
            raise ValueError("max_seeds needs stop: decided")
        if most is not None and "seeds" in kept:
            raise ValueError("max_seeds and seeds (or n) both say which seeds there are: give one")
        if most is not None and not (type(most) is int and 1 <= most <= MAX_SEEDS):
            raise ValueError(f"max_seeds is a whole number from 1 to {MAX_SEEDS}, not {most!r}")
        if not stops:
            return kept
        defaults = {"seeds": list(range(most or BUDGET_SEEDS)), "alpha": 0.05, "stop_on": "success"}
        given = {key: value for key, value in kept.items() if value is not None}
        whole = {**kept, **{key: value for key, value in defaults.items() if key not in given}}
        if whole["stop_on"] != Deciding.RETURN and whole.get("span") is None:
            whole["span"] = 1.0
        return whole

    @model_validator(mode="after")
    def _stop_is_whole(self) -> Self:
        if self.stop is None:
            if self.margin is not None and self.margin >= 1.0:
                raise ValueError(f"margin is a difference of rates, below 1, not {self.margin}")
            given = [name for name in STOPPING if getattr(self, name) is not None]
            stray = [name for name in given if name != "margin"]
            if stray:
                raise ValueError(f"{stray[0]} needs stop: decided")
            return self
        arms = len(self.model) * len(self.strategy) * len(self.guided)
        if arms < 2:
            raise ValueError("stop: decided needs two arms or more: models, strategies or guided")
        if self.stop_on is Deciding.RETURN and self.span is None:
            raise ValueError(
                "stop_on: return needs span, the highest return less the lowest that there can be"
            )
        if self.stop_on is not Deciding.RETURN and self.span != 1.0:
            raise ValueError(f"span is only for stop_on: return; {self.stop_on} lies in 0..1")
        self.stopping_rule()
        return self

    @model_validator(mode="after")
    def _keys_have_models(self) -> Self:
        labels = [label for label, _ in self.models()]
        for setting, texts in (("api_key_env", self.api_key_env), ("price", self.price)):
            named = [text.partition("=")[0] for text in texts if "=" in text]
            stray = [label for label in named if label not in labels]
            if stray:
                raise ValueError(f"{setting}: no model {stray[0]!r}; there are {', '.join(labels)}")
        return self

    def digest(self, env_digest: str) -> str:
        """Name what is run: 8 hexadecimal digits over everything that can change a trajectory."""
        absent = ("stop", *STOPPING) if self.stop is None else ()
        dumped = self.model_dump(mode="json")
        kept = {k: v for k, v in dumped.items() if k not in INCIDENTAL and k not in absent}
        scripts = [_script_digest(spec) for _, spec in self.models()]
        described = orjson.dumps([kept, env_digest, scripts], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(described).hexdigest()[:8]

    def models(self) -> list[tuple[str, ModelSpec]]:
        """Return (label, spec) of every model.

        Without a label a baseline goes by its own name, a server by the next of A, B, C...
        """
        specs = [parse_model(text) for text in self.model]
        taken = {spec.label for spec in specs}
        letters = (letter for letter in ascii_uppercase if letter not in taken)
        return [(spec.label or spec.baseline or next(letters), spec) for spec in specs]

    def stopping_rule(self) -> StoppingRule:
        """Return when the comparison of all arms stops. Raises ValueError for a margin too wide."""
        return StoppingRule(alpha=self.alpha or 0.05, margin=self.margin, span=self.span or 1.0)

    @property
    def at_once(self) -> int:
        """Episodes at once where no server's limit adapts."""
        return AT_ONCE if self.concurrency == "auto" else self.concurrency

    @property
    def patience_s(self) -> float:
        """How long a server may be away or starting, in seconds: five minutes if nothing is said.

        Only a wait that was asked for also covers a server that is not there when the run begins.
        """
        return 300.0 if self.wait_s is None else self.wait_s

    def price_of(self, label: str) -> tuple[float, float] | None:
        """Return what a model's tokens cost, in and out, in $ per million; None where not said."""
        prices = {name: (of_in, of_out) for name, of_in, of_out in map(parse_price, self.price)}
        return prices.get(label, prices.get(None))

    def api_key(self, label: str) -> str | None:
        """Read the API key for a model from the environment variable named for it.

        Raises:
            BadConfig: the variable is not set.

        """
        chosen = self._key_variable(label)
        if chosen is None:
            return None
        key = variable(chosen)
        if not key:
            raise BadConfig(f"--api-key-env {chosen}: that environment variable is not set")
        if not (key.isascii() and key.isprintable()):
            raise BadConfig(f"--api-key-env {chosen}: the key holds what no HTTP header can carry")
        return key

    def api_keys(self) -> dict[str, str]:
        """Return the API keys of all models by their environment variables; see `api_key`."""
        labels = [label for label, spec in self.models() if spec.is_url]
        named = {label: name for label in labels if (name := self._key_variable(label))}
        return {name: self.api_key(label) or "" for label, name in named.items()}

    def _key_variable(self, label: str) -> str | None:
        """Return the environment variable that is named for a model's key."""
        chosen = None
        for text in self.api_key_env:
            for_label, equals, variable = text.partition("=")
            if not equals:
                chosen = chosen or text
            elif for_label == label:
                chosen = variable
        return chosen


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML config; hyphens in names may be underscores.

    Raises:
        BadConfig: the file is not there, not YAML, or not a mapping.

    """
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise BadConfig(f"config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadConfig(f"config {path}: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise BadConfig(f"config {path}: expected settings by name")
    values = {key.replace("-", "_"): value for key, value in loaded.items()}
    if len(values) != len(loaded):
        raise BadConfig(f"config {path}: a setting is given twice, with a hyphen and without")
    return values


def _script_digest(spec: ModelSpec) -> str:
    """Name the replies of a script; "" for every other model, and for a file that is not there."""
    file = Path(spec.target.removeprefix("script:"))
    if spec.is_url or spec.target in BASELINES or not file.is_file():
        return ""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _first_problem(error: ValidationError, cls: type[BaseModel]) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where!r}; known are {', '.join(sorted(cls.model_fields))}"
    if first["type"] == "missing":
        return f"{where} is missing"
    said = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] == "value_error" else f", not {first['input']!r}"
    return f"{where}: {said}{found}"
