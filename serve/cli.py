"""The command line: `up` starts the gateway and stays, `pull` fetches a checkpoint, and so on.

Imports nothing heavy before the arguments are parsed, so that --help is instant.
"""

import argparse
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from serve import keys_cli, policies_cli
from serve.deploy.arguments import VERBS, add_parsers
from serve.errors import (
    ConfigError,
    DeployError,
    EngineError,
    PolicyError,
    PullFailed,
    StateError,
)
from serve.wire import BadReference

_EPILOG = """examples:
  python -m serve pull smollm2-135m-instruct
  python -m serve up --model smollm2-135m-instruct
  python -m serve up --model ./checkpoint --replicas 2 -- --gpu-memory-utilization 0.8
  python -m serve up --upstream http://127.0.0.1:18000 --upstream http://127.0.0.1:18010
  python -m serve keys create --scope infer,eval
  python -m serve deploy --target modal

exit codes: 0 stopped by Ctrl-C or SIGTERM, or done; 1 no engine could be kept up, a pull failed or
a deployment does not answer; 2 wrong usage
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    extra: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, extra = arguments[:cut], arguments[cut + 1 :]
    options = _parser().parse_args(arguments)
    try:
        if options.command == "pull":
            return _pull(options.name)
        if options.command == "up":
            return _up(options, tuple(extra))
        if options.command == "policies":
            return policies_cli.run(options)
        if options.command in VERBS:
            return _verb(options)
        return keys_cli.run(options)
    except (ConfigError, PolicyError, BadReference) as error:
        _complain(error)
        return 2
    except (DeployError, EngineError, PullFailed, StateError) as error:
        _complain(error)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        description="Serve a checkpoint as an OpenAI-compatible endpoint, with vLLM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_up(commands)
    pull = commands.add_parser("pull", help="fetch a checkpoint into the user's cache folder")
    pull.add_argument("name", metavar="NAME", help="smollm2-135m-instruct, or a hub id ORG/NAME")
    policies_cli.add_parser(commands)
    keys_cli.add_parser(commands)
    add_parsers(commands)
    return parser


def _add_up(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    up = commands.add_parser("up", help="start the gateway and its replicas; stay until Ctrl-C")
    up.add_argument("--config", metavar="FILE", help="YAML; the other options win over it")
    up.add_argument("--model", help="a folder, a pulled name, or a hub id ORG/NAME")
    up.add_argument("--name", help="what requests call it (default: the model's own name)")
    up.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="URL",
        help="instead of --model: an engine that runs already; repeat for several",
    )
    up.add_argument("--host", help="default: 127.0.0.1; beyond loopback it takes a key")
    up.add_argument("--port", type=int, help="0: a free one (default: 8000)")
    up.add_argument("--state", metavar="DIR", help="keys, policies, logs (default: in the cache)")
    up.add_argument("--replicas", type=int, metavar="N", help="engines to start (default: 1)")
    up.add_argument("--max-replicas", type=int, metavar="N", help="grow up to so many under load")
    up.add_argument("--idle-to-zero-s", type=float, metavar="S", help="stop the last one after S")
    up.add_argument("--max-model-len", type=int, metavar="TOKENS", help="prompt and completion")
    up.add_argument("--lora", action="store_true", help="serve LoRA versions beside the full one")
    up.add_argument("--routing", help="sticky (default), round_robin or random")
    up.add_argument(
        "--hold-s", type=float, metavar="S", help="how long requests wait for a replica"
    )
    up.add_argument("--access-log", metavar="FILE", help="a line of JSON for each request")


def _pull(name: str) -> int:
    from serve.models import pull  # noqa: PLC0415  # not for --help

    print(pull(name, lambda step: print(f"{step} ...", file=sys.stderr, flush=True)))
    return 0


def _up(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    path = Path(options.config) if options.config else None
    return _stay_up(path, _overrides(options, extra))


def _verb(options: argparse.Namespace) -> int:
    """Run a verb of a deployment; `deploy --target local` is `up`."""
    from serve.deploy.cli import run  # noqa: PLC0415  # not for --help

    done = run(options)
    return done if isinstance(done, int) else _stay_up(None, done.settings)


def _stay_up(path: Path | None, settings: dict[str, Any]) -> int:
    from serve.settings import load  # noqa: PLC0415
    from serve.up import Told, stay_up  # noqa: PLC0415

    config = load(path, settings)
    told = Told(
        listening=lambda url: print(f"listening on {url}; logs in {config.state}", flush=True),
        waiting=_show_wait,
        ready=lambda url, names: print(_welcome(url, names), flush=True),
    )
    run = _runner()
    run(stay_up(config, told, rules=path))
    print("stopped", flush=True)
    return 0


def _overrides(options: argparse.Namespace, extra: tuple[str, ...]) -> dict[str, Any]:
    """Return what the command line says, in the shape of the config."""
    engine = {
        "max_model_len": options.max_model_len,
        "lora": options.lora or None,
        "extra_args": extra or None,
    }
    same = ("model", "name", "host", "port", "state", "replicas", "max_replicas", "routing")
    return {
        **{key: getattr(options, key) for key in (*same, "access_log")},
        "upstreams": tuple(options.upstream) or None,
        "engine": engine,
        "front": {"hold_s": options.hold_s},
        "scaling": {"idle_to_zero_s": options.idle_to_zero_s},
    }


def _runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    try:
        import uvloop  # noqa: PLC0415  # not there on every platform
    except ImportError:
        import asyncio  # noqa: PLC0415

        return asyncio.run
    return uvloop.run


def _show_wait(elapsed_s: int) -> None:
    """Show that time passes: on a terminal in place, elsewhere a line each ten seconds."""
    if sys.stdout.isatty():
        print(f"\rstarting: {elapsed_s} s", end="", flush=True)
    elif elapsed_s % 10 == 0:
        print(f"starting: {elapsed_s} s", flush=True)


def _welcome(base_url: str, names: str) -> str:
    """Say where the gateway is and how to talk to it."""
    name = names.partition(",")[0]
    root = base_url.removesuffix("/v1")
    return f"""
base URL  {base_url}
model     {names}
dashboard {root}/dashboard

from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key="none")  # or a key: python -m serve keys create
reply = client.chat.completions.create(
    model="{name}", messages=[{{"role": "user", "content": "Hello"}}]
)
print(reply.choices[0].message.content)

ready; Ctrl-C stops it"""


def _complain(error: Exception) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
