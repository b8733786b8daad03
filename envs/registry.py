"""Where an env's name becomes an env: shipped ids, `pkg.module:Class` and `path/to/file.py:Class`.

Knows every shipped env by name and imports it only when asked.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from envs.base import TextEnv

SHIPPED: dict[str, str] = {
    "key_door": "envs.games.key_door:KeyDoor",
    "tic_tac_toe": "envs.games.tic_tac_toe:TicTacToe",
    "wordle": "envs.games.wordle:Wordle",
    "gsm8k": "envs.tasks.gsm8k:Gsm8k",
    "function_calling": "envs.tasks.function_calling:FunctionCalling",
    "tool_test": "envs.tasks.tool_test:ToolTest",
}
ALIASES: dict[str, str] = {"bfcl": "function_calling", "bfcl_single_turn": "function_calling"}
"""Other names of shipped envs, as `shipped_id` reads them."""


class UnknownEnv(ValueError):
    """No env goes by that name."""


class BadEnvParams(ValueError):
    """The env exists, but not with these parameters."""


def make(name: str, /, **params: Any) -> TextEnv:  # noqa: ANN401 - any env's own parameters
    """Make the env called `name`: a shipped id, `pkg.module:Class` or `file.py:Class`.

    Raises:
        UnknownEnv: nothing goes by that name.
        BadEnvParams: the env does not take these parameters.

    """
    cls = env_class(name)
    accepted = _keyword_params(cls)
    unknown = sorted(set(params) - set(accepted))
    if unknown:
        raise BadEnvParams(
            f"{name} takes no parameter {unknown[0]!r}; it takes {', '.join(accepted) or 'none'}"
        )
    try:
        return cls(**params)
    except (TypeError, ValueError) as error:
        raise BadEnvParams(f"{name}: {error}") from error


def env_class(name: str) -> type[TextEnv]:
    """Find the class that `name` stands for, without making an env.

    Raises:
        UnknownEnv: nothing goes by that name.

    """
    target = SHIPPED.get(shipped_id(name) or "", name)
    place, colon, attribute = target.rpartition(":")
    if not colon or not place or not attribute:
        known = ", ".join(sorted(SHIPPED))
        near = difflib.get_close_matches(_plain(name), [*SHIPPED, *ALIASES], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownEnv(
            f"no env is called {name!r}: known are {known}; "
            f"your own goes by pkg.module:Class or path/to/file.py:Class{hint}"
        )
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found = getattr(module, attribute, None)
    if found is None:
        raise UnknownEnv(f"{place} has no {attribute!r}")
    if not (isinstance(found, type) and issubclass(found, TextEnv)):
        raise UnknownEnv(f"{target} is not a subclass of envs.TextEnv")
    return found


def shipped_id(name: str) -> str | None:
    """Return the id of the shipped env that goes by `name`, if one does.

    Case, hyphens and the prefix of verifiers do not matter: `vf-wordle`, `vf_wordle` and `Wordle`
    are wordle; `bfcl` and `bfcl-single-turn` are function_calling.
    """
    plain = _plain(name)
    found = ALIASES.get(plain, plain)
    return found if found in SHIPPED else None


def digest(env: TextEnv) -> str:
    """Name what an env is: 16 hexadecimal digits over its id, version, parameters and source.

    The source is that of the modules of its class and of every class it inherits from; one that
    cannot be read (a class typed into a prompt) does not count. An env that plays what else it
    reads has a method `data_digest`, which names that: it counts too. Parameters that only say
    where it lies, which the env names in `data_params`, do not.
    """
    modules = {cls.__module__ for cls in type(env).__mro__ if issubclass(cls, TextEnv)}
    sources = [_source(name) for name in sorted(modules)]
    places = getattr(env, "data_params", ())
    params = {name: value for name, value in env.params.items() if name not in places}
    parts: list[Any] = [type(env).__qualname__, env.version, params, sources]
    data_digest = getattr(env, "data_digest", None)
    if data_digest is not None:
        parts.append(data_digest())
    described = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def env_id(env: TextEnv) -> str:
    """Return the env's own id, or its class name in lower case where it has none."""
    return getattr(env, "id", None) or type(env).__name__.lower()


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").removeprefix("vf_")


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return ""


def _keyword_params(cls: type[TextEnv]) -> list[str]:
    signature = inspect.signature(cls)
    return [name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]


def _load_module(name: str) -> Any:  # noqa: ANN401 - a module of the user's
    with _loading(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name == missing or name.startswith(f"{missing}."):
                raise UnknownEnv(
                    f"no module named {missing!r} (looked for env {name!r})"
                ) from error
            raise


def _load_file(path: Path) -> Any:  # noqa: ANN401 - a module of the user's
    if not path.is_file():
        raise UnknownEnv(f"no file {path}")
    name = f"envs_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnknownEnv(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with ExitStack() as undo:  # or the next call would take a half-made module for the file
        undo.callback(sys.modules.pop, name)
        with _loading(str(path)):
            spec.loader.exec_module(module)
        undo.pop_all()
    return module


@contextmanager
def _loading(place: str) -> Iterator[None]:
    """Say in one line where code that is being loaded broke: the traceback's innermost line.

    Broad on purpose: the block runs nothing but a user's module, which may raise anything.
    """
    try:
        yield
    except UnknownEnv:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
        raise UnknownEnv(f"{place} does not load: {said}") from error
