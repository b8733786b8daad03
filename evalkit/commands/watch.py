"""`evalkit watch`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.arguments import (
    NOT_GIVEN,
    Parser,
    add_limits,
    add_sampling,
    merged,
    settings,
)
from evalkit.commands.ends import awaited
from evalkit.errors import BadConfig

if TYPE_CHECKING:
    from evalkit.config import RunConfig
    from evalkit.specs import ModelSpec
    from evalkit.watch.sources import Source
    from evalkit.watch.watcher import Watcher

WORSE = 3
"""Exit code: the newest version is significantly worse than the best before it."""
OWN = ("target", "url", "every", "once", "junit", "max_versions", "out")
"""What is said of the watch itself; the rest is a run's."""


def command(words: Sequence[str]) -> int:
    """Evaluate every new version of a policy as it appears, on the same seeds."""
    typed = vars(_parser().parse_args(words))
    said = {name: typed.pop(name) for name in OWN if name in typed}
    from evalkit.arms import slug  # noqa: PLC0415
    from evalkit.config import RunConfig, load_yaml  # noqa: PLC0415
    from evalkit.environment import load_env_file  # noqa: PLC0415

    load_env_file(Path(".env"))
    file = typed.pop("config", None)
    values = merged(settings(load_yaml(Path(file)) if file else {}), settings(typed))
    if "env" not in values:
        raise BadConfig("--env is missing (see --help)")
    spec, checkpoints = _place(said["target"], said.get("url"))
    model = f"version={spec.under(None)}"
    config = RunConfig.read({**values, "model": model}, file or "command line")
    if len(config.strategy) > 1 or len(config.guided) > 1:
        raise BadConfig("watch plays one strategy and one kind of answer: versions are its arms")
    folder = said.get("out") or Path("results") / f"watch-{slug(config.env)}"
    return _watched(config, spec, checkpoints, folder, said)


def _parser() -> Parser:
    parser = Parser(
        prog="evalkit watch",
        description=command.__doc__,
        epilog="exit codes: 3 the newest version is significantly worse than the best before it; "
        "1 a version could not be evaluated; 0 otherwise",
        argument_default=NOT_GIVEN,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("target", metavar="TARGET", help="URL[#POLICY] of a gateway, or a folder of checkpoints")
    add(
        "--url",
        metavar="URL[#POLICY]",
        help="for a folder: the gateway where each checkpoint is published as the policy's newest "
        "version; its disk has the folder too",
    )
    add("--every", type=float, metavar="S", help="seconds between two looks (default 30)")
    add("--once", action="store_true", help="one look, then end")
    add("--max-versions", type=int, metavar="N", help="end when N versions were evaluated")
    add("--junit", type=Path, metavar="FILE", help="write JUnit XML, a test case per version")
    add("--wandb", metavar="PROJECT", help="log every version to Weights & Biases")
    add("--out", type=Path, metavar="DIR", help="where the curve lies (default results/watch-ENV)")
    add("--config", metavar="FILE", help="YAML with a run's settings; the command line wins")
    add("--env", help="as for playing")
    add("--env-arg", action="append", metavar="NAME=VALUE", help="parameter of the env")
    add("--strategy", metavar="NAME", help="history strategy (default NO_HISTORY)")
    add(
        "--guided", nargs="?", const="on", metavar="on|off", help="answers in the env's format only"
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("-n", "--num-examples", dest="n", type=int, metavar="N", help="env seeds")
    seeds.add_argument("--seeds", metavar="A:B", help="env seeds A to B-1, or a comma list")
    add("-k", type=int, help="repetitions of every seed (default 1)")
    add_sampling(parser)
    add_limits(parser)
    return parser


def _place(target: str, url: str | None) -> tuple[ModelSpec, Path | None]:
    """Return the gateway, and the folder where that is what is watched."""
    from evalkit.specs import parse_model  # noqa: PLC0415

    is_url = target.startswith(("http://", "https://"))
    if is_url and url is not None:
        raise BadConfig("--url is for a folder of checkpoints: TARGET is a URL already")
    if not is_url and url is None:
        raise BadConfig(
            f"{target}: a folder of checkpoints needs a gateway to serve them: --url URL[#POLICY]"
        )
    try:
        spec = parse_model(target if is_url else url or "")
    except ValueError as error:
        raise BadConfig(str(error)) from error
    if not spec.is_url:
        raise BadConfig(f"--url is the URL of a gateway, not {url!r}")
    return spec, None if is_url else Path(target)


def _watched(
    config: RunConfig,
    spec: ModelSpec,
    checkpoints: Path | None,
    folder: Path,
    said: Mapping[str, Any],
) -> int:
    from evalkit.wandb_sink import WandbSink  # noqa: PLC0415
    from evalkit.watch.watcher import Plan, Watcher  # noqa: PLC0415

    every_s = None if said.get("once") else said.get("every", 30.0)
    if every_s is not None and not 0 < every_s < math.inf:
        raise BadConfig(f"--every is a number of seconds above 0, not {every_s}")
    if said.get("max_versions", 1) < 1:
        raise BadConfig(f"--max-versions is at least 1, not {said['max_versions']}")
    plan = Plan(
        config=config,
        folder=folder,
        every_s=every_s,
        max_versions=said.get("max_versions"),
        junit=said.get("junit"),
    )
    source = _source(config, spec, checkpoints)
    watcher = Watcher(plan, source, say=lambda line: print(line, flush=True))
    if config.wandb is None:
        return _ended(watcher)
    kept = config.model_dump(mode="json")
    with WandbSink(config.wandb, folder=folder, name=folder.name, config=kept) as sink:
        watcher.tell(sink.log)
        return _ended(watcher)


def _source(config: RunConfig, spec: ModelSpec, checkpoints: Path | None) -> Source:
    from evalkit.watch.sources import FolderSource, Gateway, GatewaySource  # noqa: PLC0415

    gateway = Gateway(spec, config.api_key("version"))
    if checkpoints is None:
        return GatewaySource(gateway)
    return FolderSource(checkpoints, gateway, wait_s=config.patience_s)


def _ended(watcher: Watcher) -> int:
    """Watch to the end, and return the exit code."""
    worse = awaited(watcher.watch())
    if not isinstance(worse, bool):
        return worse
    folder = watcher.plan.folder
    print(f"\n{folder}/: learning_curve.csv learning_curve.html learning_curve.svg versions/")
    if worse:
        return WORSE
    return 1 if watcher.n_failed else 0
