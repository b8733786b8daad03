"""The command line: what was typed becomes a config, what was found becomes text and an exit code.

Exit codes: 0 done; 1 the run failed or lost episodes to errors, and can be resumed; 2 the request
cannot be carried out as typed; 130 and 143 interrupted, and can be resumed. Heavy modules are
imported by the command that needs them, so that `--help` is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evalkit.arguments import (
    NOT_GIVEN,
    Parser,
    add_limits,
    add_target,
    limit_options,
    merged,
    run_parser,
    settings,
    sweep_of,
)
from evalkit.commands.ends import awaited, matrix_played, played
from evalkit.errors import BadConfig, EvalkitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from evalkit.sharded import Fleet, PlayedShard

    Containers = Callable[[Sequence[str]], Fleet]
    """Makes the fleet on Modal, from the names of the secrets it shall have."""

T = TypeVar("T")
DEFAULT_SHARDS = 8


def main(argv: Sequence[str] | None = None, containers: Containers | None = None) -> int:
    """Carry out a command line; return the exit code.

    `containers` is given where a program that Modal started calls: shards are played there.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in COMMANDS:
            return int(import_module(COMMANDS[words[0]]).command(words[1:]))
        if words and words[0] == "resume":
            return resume_command(words[1:], containers)
        return run_command(words[1:] if words[:1] == ["run"] else words, containers)
    except UsageError as error:
        return _fail(error, 2)
    except EvalkitError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def run_command(words: Sequence[str], containers: Containers | None = None) -> int:
    """Play a new run and report it."""
    parser = run_parser()
    if not words:
        parser.print_help()
        return 2
    typed = vars(parser.parse_args(words))
    place = Place.taken_from(typed, there=containers is not None)
    sweep = sweep_of(typed)
    from evalkit.config import RunConfig, load_yaml  # noqa: PLC0415
    from evalkit.environment import load_env_file  # noqa: PLC0415

    load_env_file(Path(".env"))
    file = typed.pop("config", None)
    values = merged(settings(load_yaml(Path(file)) if file else {}), settings(typed))
    for required in ("model", "env"):
        if required not in values:
            raise BadConfig(f"--{required} is missing (see --help)")
    config = RunConfig.read(values, file or "command line")
    if sweep:
        place.require_here("a sweep")
        if config.stop is not None:
            raise BadConfig("a sweep plays all of its seeds: leave --stop away")
        from evalkit.matrix import start_matrix  # noqa: PLC0415

        return matrix_played(start_matrix(config, sweep, show=sys.stderr))
    if config.stop is not None:
        place.require_here("--stop")
    if place.target == "modal" and containers is None:
        return _through_modal("evaluate", words, detach=place.detach)
    from evalkit.record.shard import Shard  # noqa: PLC0415
    from evalkit.run import start  # noqa: PLC0415

    if place.shard is None and place.procs is None and place.target != "modal":
        return played(start(config, show=sys.stderr))
    from evalkit.sharded import start_shard, start_sharded  # noqa: PLC0415

    if place.shard is not None:
        return _shard_played(start_shard(config, Shard.parse(place.shard), show=sys.stderr))
    asked = place.shards if place.procs is None else place.procs
    count = min(DEFAULT_SHARDS, len(config.seeds)) if asked is None else asked
    fleet = place.fleet(containers)
    return played(start_sharded(config, count, fleet, show=sys.stderr))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the episodes are to be played, and by how many."""

    target: str | None
    procs: int | None = None
    shard: str | None = None
    shards: int | None = None
    secret: Sequence[str] = ()
    detach: bool = False

    @classmethod
    def taken_from(cls, typed: dict[str, Any], *, there: bool) -> Place:
        """Take what says where out of what was typed; `there` is a program that Modal started.

        Raises:
            BadConfig: one needs the other target.

        """
        names = ("procs", "shard", "shards", "secret", "detach")
        said = {name: typed.pop(name) for name in names if name in typed}
        target = typed.pop("target", "modal" if there else None)
        place = cls(target=target, **said)
        if place.target == "modal" and (place.procs is not None or place.shard is not None):
            raise BadConfig("--target modal takes --shards; --procs and --shard play here")
        if place.target != "modal" and (place.shards is not None or place.secret or place.detach):
            raise BadConfig("--shards, --secret and --detach need --target modal")
        return place

    def require_here(self, what: str) -> None:
        """Refuse what is not played in this one process.

        Raises:
            BadConfig: it is asked for elsewhere, or in parts.

        """
        if self.procs is not None or self.shard is not None or self.target == "modal":
            raise BadConfig(f"{what} takes neither --procs, --shard nor --target modal")

    def fleet(self, containers: Containers | None) -> Fleet:
        """Return what plays the shards: `containers`, or else processes."""
        if containers is not None:
            return containers(self.secret)
        from evalkit.processes import Processes  # noqa: PLC0415

        return Processes()


def resume_command(words: Sequence[str], containers: Containers | None = None) -> int:
    """Go on with an interrupted run."""
    parser = Parser(
        prog="evalkit resume",
        description=resume_command.__doc__,
        argument_default=NOT_GIVEN,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument(
        "--model",
        action="append",
        metavar="[LABEL=]URL[#NAME]",
        help="where a model that has moved is now",
    )
    add_limits(parser)
    add_target(parser)
    typed = vars(parser.parse_args(words))
    place = Place.taken_from(typed, there=containers is not None)
    from evalkit.environment import load_env_file  # noqa: PLC0415
    from evalkit.record.rundir import RunDir  # noqa: PLC0415

    load_env_file(Path(".env"))
    path = typed.pop("run")
    if (path / "matrix.json").is_file():
        place.require_here("a sweep")
        from evalkit.matrix import resume_matrix  # noqa: PLC0415

        return matrix_played(resume_matrix(path, show=sys.stderr, **typed))
    rundir = RunDir.open(path)
    manifest = rundir.manifest()
    if not rundir.shards_path.exists() and manifest.get("shard") is None:
        from evalkit.run import resume  # noqa: PLC0415

        return played(resume(rundir.path, show=sys.stderr, **typed))
    from evalkit.sharded import resume_shard, resume_sharded  # noqa: PLC0415

    if manifest.get("shard") is not None:
        return _shard_played(resume_shard(rundir.path, show=sys.stderr, **typed))
    target = place.target or manifest["target"]
    if target == "modal" and containers is None:
        return _through_modal("resume", words, detach=place.detach)
    fleet = place.fleet(containers if target == "modal" else None)
    options = limit_options(typed)
    return played(resume_sharded(rundir.path, fleet, show=sys.stderr, options=options, **typed))


COMMANDS = {
    "merge": "evalkit.commands.merge",
    "replay": "evalkit.commands.replay",
    "fork": "evalkit.commands.fork",
    "debug": "evalkit.commands.debug",
    "report": "evalkit.commands.report",
    "compare": "evalkit.commands.compare",
    "power": "evalkit.commands.power",
    "check-stats": "evalkit.commands.check_stats",
    "check-env": "evalkit.commands.check_env",
    "envs": "evalkit.commands.envs",
    "view": "evalkit.commands.view",
    "leaderboard": "evalkit.commands.leaderboard",
    "export": "evalkit.commands.export",
    "import": "evalkit.commands.import_",
    "watch": "evalkit.commands.watch",
}
"""Where each command lives: a module with `command(words)`, imported when it is typed."""


def _through_modal(entrypoint: str, words: Sequence[str], *, detach: bool) -> int:
    """Become the `modal` command that plays the shards in containers."""
    if find_spec("modal") is None:
        raise BadConfig("--target modal needs the package modal: install palaestra[modal]")
    modal = [sys.executable, "-m", "modal", "run", *(["--detach"] if detach else [])]
    kept = [word for word in words if word != "--detach"]
    argv = [*modal, "-m", f"evalkit.modal_app::{entrypoint}", *kept]
    sys.stdout.flush()
    os.execv(sys.executable, argv)  # noqa: S606 - the user's own modal


def _shard_played(work: Coroutine[Any, Any, PlayedShard]) -> int:
    """Play a shard to its end, and return the exit code."""
    played = awaited(work)
    if isinstance(played, int):
        return played
    lost = f", {played.n_error} lost to errors" if played.n_error else ""
    print(
        f"{played.path}: {played.n_episodes} episodes of shard {played.shard}{lost}; when all "
        f"shards are done: python -m evalkit merge OUT SHARD..."
    )
    return 1 if played.n_error else 0


def _fail(error: Exception, code: int) -> int:
    from evalkit.show.replay import printable  # noqa: PLC0415

    print(f"evalkit: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return code
