"""Where a debugged episode comes from: an episode of a run, or one that was not played yet.

Lives here: what a run directory must hold so that an episode of it can go on, and the models that
may play it, connected when they are first asked. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

from envs import digest, env_id
from evalkit.arms import arm_name, env_factory, slug
from evalkit.config import RunConfig
from evalkit.connect import Connected, connect
from evalkit.debug.interventions import Intervention, InterventionKind
from evalkit.debug.session import Debugger
from evalkit.errors import BadConfig, DamagedRun
from evalkit.play.policy import Ask, Completion, Policy
from evalkit.play.rollout import Arm
from evalkit.play.strategies import parse_strategy
from evalkit.record.chosen import read_chosen, sources
from evalkit.record.rundir import RunDir
from evalkit.record.trajectory import Key, Trajectory
from evalkit.specs import ModelSpec, parse_model

KEPT = (
    *("env", "env_args", "temperature", "top_p", "max_tokens", "extra_body", "keep_reasoning"),
    *("run_seed", "attempts", "timeout_s", "wait_s"),
)
"""Settings of a run that hold for what is forked from it."""
FORK_FORMAT = "fork/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One episode, and what it was or will be played with."""

    config: RunConfig
    """Of a run of this one arm on this one seed."""
    arm: Arm
    """As the episode begins."""
    key: Key
    """As the episode begins: a fork of another repetition has its own only from its fork on."""
    manifest: Mapping[str, Any] | None = None
    """Of the run that it comes from."""
    directory: str | None = None
    """Of that run, by its name alone."""
    entry: Mapping[str, Any] | None = None
    """What that says of the arm."""
    recorded: Trajectory | None = None
    planned: tuple[Intervention, ...] = ()

    @classmethod
    def fresh(cls, config: RunConfig) -> Self:
        """Return the episode of the config's first seed, strategy and kind of answer."""
        label, _ = config.models()[0]
        strategy, guided = config.strategy[0], config.guided[0]
        one = config.model_copy(
            update={
                "model": config.model[:1],
                "strategy": (strategy,),
                "guided": (guided,),
                "seeds": config.seeds[:1],
                "k": 1,
            }
        )
        name = arm_name(one, label, strategy, guided=guided)
        arm = _arm(one, name, strategy, guided=guided, run_id=f"debug-{slug(config.env)}")
        return cls(config=one, arm=arm, key=Key(env_seed=one.seeds[0], repetition=0, arm=arm.name))

    def debugger(self, live: Policy) -> Debugger:
        """Return the episode at its beginning; `live` plays what is not recorded."""
        arm = replace(self.arm, policy=live)
        turns = () if self.recorded is None else self.recorded.turns
        return Debugger(arm, self.key, recorded=turns, planned=self.planned)


class RecordedRun:
    """A run directory whose episodes can be played again."""

    def __init__(self, path: Path) -> None:
        """Open the run at `path`.

        Raises:
            BadConfig: there is no run, or its env is not what it was.
            DamagedRun: its manifest is not what evalkit writes.

        """
        self.rundir = RunDir.open(path)
        self.manifest = self.rundir.manifest()
        if self.manifest.get("imported") is not None:
            raise BadConfig(f"{path} was imported: there is no env to replay its episodes in")
        with _read_from(self.rundir):
            known = {name: self.manifest["config"][name] for name in KEPT}
            env_id_, was, version = (self.manifest["env"][k] for k in ("id", "digest", "version"))
            self.names = [str(entry["name"]) for entry in self.manifest["arms"]]
            """The arms."""
        self._config = RunConfig.read({**known, "model": "noop"}, f"{self.rundir.manifest_path}")
        self.make_env = env_factory(self._config)
        if digest(self.make_env()) != was:
            raise BadConfig(
                f"the env {env_id_} is not what it was when {path} was played (version "
                f"{version}, digest {was}): its episodes cannot be replayed"
            )

    def find(self, seed: int, arm: str | None, repetition: int) -> Trajectory:
        """Return the finished episode.

        Raises:
            BadConfig: there is none, or the run has several arms and none is named.

        """
        if arm is None and len(self.names) > 1:
            raise BadConfig(f"--arm is missing: the run's arms are {', '.join(self.names)}")
        key = Key(env_seed=seed, repetition=repetition, arm=arm or self.names[0])
        found = read_chosen(sources(self.rundir, [key.arm]), [(seed, repetition)])
        if key in found:
            return found[key]
        raise BadConfig(
            f"{self.rundir.path} has no finished episode of seed {seed}, repetition {repetition}, "
            f"arm {key.arm}; its arms are {', '.join(self.names)}"
        )

    def arm(self, name: str, run_id: str) -> Arm:
        """Return an arm of the run as its episodes begin; its policy is not there."""
        entry = self._entry(name)
        with _read_from(self.rundir):
            fork = self.manifest.get("fork")
            strategy = entry["strategy"] if fork is None else fork["strategy"]
            return _arm(self._config, name, strategy, guided=entry["guided"], run_id=run_id)

    def began_as(self, key: Key) -> tuple[Key, tuple[Intervention, ...]]:
        """Return the key under which an episode begins, and what was changed in it."""
        fork = self.manifest.get("fork")
        if fork is None:
            return key, ()
        if not isinstance(fork, dict) or fork.get("format") != FORK_FORMAT:
            raise DamagedRun(f"{self.rundir.manifest_path}: expected a fork of {FORK_FORMAT}")
        with _read_from(self.rundir):
            made = [
                Intervention(**{**row, "kind": InterventionKind(row["kind"])})
                for row in fork["interventions"]
            ]
            repetitions = [int(m.value) for m in made if m.kind is InterventionKind.REPETITION]
            if [*repetitions[-1:], fork["repetition"]][0] != key.repetition:
                change = str(key.repetition)
                kind = InterventionKind.REPETITION
                made.append(Intervention(turn=fork["turn"], kind=kind, value=change))
            began = Key(env_seed=key.env_seed, repetition=fork["repetition"], arm=key.arm)
            return began, tuple(made)

    def episode(
        self, trajectory: Trajectory, model: str | None = None, **settings: object
    ) -> Episode:
        """Return an episode to go on with, played by `model` where one is named.

        Raises:
            BadConfig: it was played by a Python object, and no model is named.

        """
        name = trajectory.key.arm
        entry = self._entry(name)
        with _read_from(self.rundir):
            label, spec, _ = self._seat(name)
        if model is None and self.manifest.get("policy") is not None:
            raise BadConfig(
                f"{self.rundir.path} was played by a Python object, {self.manifest['policy']}: "
                "name a --model"
            )
        values = {
            **self._config.model_dump(mode="json"),
            "model": [model or spec.under(name[:40])],
            "strategy": [entry["strategy"]],
            "guided": [entry["guided"]],
            "seeds": [trajectory.key.env_seed],
            "out": str(self.rundir.path.parent),
            "api_key_env": [] if model else _keys(self.manifest["config"]["api_key_env"], label),
            **{key: value for key, value in settings.items() if value is not None},
        }
        config = RunConfig.read(values, "fork")
        called = arm_name(config, config.models()[0][0], entry["strategy"], guided=entry["guided"])
        arm = self.arm(name, f"{self.manifest['run_id']}-s{trajectory.key.env_seed}")
        key, planned = self.began_as(trajectory.key)
        return Episode(
            config=config,
            arm=_arm(config, called, str(arm.strategy), guided=arm.guided, run_id=arm.run_id),
            key=Key(env_seed=key.env_seed, repetition=key.repetition, arm=called),
            manifest=self.manifest,
            directory=self.rundir.path.resolve().name,
            entry=entry,
            recorded=trajectory,
            planned=planned,
        )

    def _entry(self, name: str) -> dict[str, Any]:
        for entry in self.manifest["arms"]:
            if entry["name"] == name:
                found: dict[str, Any] = entry
                return found
        raise BadConfig(f"{self.rundir.path} has no arm {name}; it has {', '.join(self.names)}")

    def _seat(self, name: str) -> tuple[str, ModelSpec, str]:
        """Return (label, spec, strategy) of an arm, by the name that they make."""
        asked = self.manifest["config"]
        values = {name: asked[name] for name in (*KEPT, "model", "strategy", "guided")}
        config = RunConfig.read(values, f"{self.rundir.manifest_path}")
        for (label, spec), strategy, guided in product(
            config.models(), config.strategy, config.guided
        ):
            if arm_name(config, label, strategy, guided=guided) == name:
                return label, spec, strategy
        raise DamagedRun(f"{self.rundir.manifest_path}: its config makes no arm {name}")


@contextmanager
def _read_from(rundir: RunDir) -> Iterator[None]:
    """Say of a manifest that is not what was written which one it is."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRun(f"{rundir.manifest_path} is not what evalkit writes: {error!r}") from error


class Models:
    """The models that play live, each connected when it is first needed.

    An API key that was given without a label is sent to the first model's URL only.
    """

    def __init__(self, config: RunConfig, keys: Sequence[str] = ()) -> None:
        """`keys` are what `--api-key-env` takes, for models that are named later."""
        self._config = config
        self._keys = tuple(keys)
        self._connected: dict[str, Connected] = {}
        self._stack = AsyncExitStack()

    @property
    def first(self) -> str:
        """What the config names."""
        return self._config.model[0]

    async def open(self, text: str) -> Connected:
        """Connect a model, as `--model` has it.

        Raises:
            UsageError: it is none, or does not answer.

        """
        if text not in self._connected:
            config = self.config(text)
            label, spec = config.models()[0]
            found = await connect(label, spec, config)
            await self._stack.enter_async_context(found.policy)
            self._connected[text] = found
        return self._connected[text]

    def connected(self, text: str) -> Connected | None:
        """Return a model that was asked before."""
        return self._connected.get(text)

    def config(self, text: str) -> RunConfig:
        """Return the config with another model."""
        keys: tuple[str, ...] = ()
        if text == self.first:
            keys = self._config.api_key_env
        try:
            label = parse_model(text).label
        except ValueError as error:
            raise BadConfig(f"model: {error}") from error
        keys = keys or tuple(key for key in self._keys if label and key.startswith(f"{label}="))
        values = self._config.model_dump(mode="json")
        return RunConfig.read({**values, "model": [text], "api_key_env": list(keys)}, "model")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of every model."""
        await self._stack.aclose()


class OnDemand(Policy):
    """A model that is connected when it is first asked."""

    def __init__(self, models: Models, text: str) -> None:
        self.text = text
        self._models = models

    async def complete(self, ask: Ask) -> Completion:
        """Connect if that was not done, and ask."""
        found = await self._models.open(self.text)
        return await found.policy.complete(ask)


class Unasked(Policy):
    """Stands where nobody is asked."""

    async def complete(self, ask: Ask) -> Completion:
        """Raise: an arm that was made to replay has nobody to ask."""
        raise AssertionError(f"nobody is there to answer turn {ask.turn}")


def _arm(config: RunConfig, name: str, strategy: str, *, guided: bool, run_id: str) -> Arm:
    return Arm(
        name=name,
        policy=Unasked(),
        strategy=parse_strategy(strategy),
        make_env=env_factory(config),
        run_id=run_id,
        run_seed=config.run_seed,
        guided=guided,
        keep_reasoning=config.keep_reasoning,
    )


def _keys(named: Sequence[str], label: str) -> list[str]:
    """Return the environment variables that a run named for the key of one of its models."""
    pairs = [text.rpartition("=") for text in named]
    return [variable for for_label, _, variable in pairs if for_label in {"", label}]


def origin_run_id(episode: Episode) -> str:
    """Return the run that an episode comes from, or the name of its env."""
    if episode.manifest is not None:
        return str(episode.manifest["run_id"])
    return slug(env_id(episode.arm.make_env()))
