"""The command line: `up` starts an engine and stays, `pull` fetches a checkpoint.

Imports nothing heavy before the arguments are parsed, so that --help is instant.
"""

import argparse
import sys

from serve.errors import ConfigError, EngineError, PullFailed

_EPILOG = """examples:
  python -m serve pull smollm2-135m-instruct
  python -m serve up --model smollm2-135m-instruct
  python -m serve up --model ./checkpoint --port 0 -- --gpu-memory-utilization 0.8

exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 the engine died or a pull failed, 2 wrong usage
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
        return _up(options, tuple(extra))
    except ConfigError as error:
        _complain(error)
        return 2
    except (EngineError, PullFailed) as error:
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
    up = commands.add_parser("up", help="start one engine and stay until Ctrl-C")
    up.add_argument("--model", required=True, help="a folder, a pulled name, or a hub id ORG/NAME")
    up.add_argument("--name", help="what requests call it (default: the model's own name)")
    up.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    up.add_argument("--port", type=int, default=8000, help="0: a free one (default: %(default)s)")
    up.add_argument("--log", metavar="FILE", help="the engine's output (default: in the cache)")
    up.add_argument("--max-model-len", type=int, metavar="TOKENS", help="prompt and completion")
    up.add_argument("--api-key-env", metavar="VAR", help="environment variable that holds the key")
    pull = commands.add_parser("pull", help="fetch a checkpoint into the user's cache folder")
    pull.add_argument("name", metavar="NAME", help="smollm2-135m-instruct, or a hub id ORG/NAME")
    return parser


def _pull(name: str) -> int:
    from serve.models import pull  # noqa: PLC0415  # not for --help

    print(pull(name, lambda step: print(f"{step} ...", file=sys.stderr, flush=True)))
    return 0


def _up(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    import asyncio  # noqa: PLC0415  # not for --help
    from pathlib import Path  # noqa: PLC0415

    from serve.config import EngineConfig, api_key_from, cache_dir  # noqa: PLC0415
    from serve.engine.command import detect, vllm_command  # noqa: PLC0415
    from serve.engine.launch import LaunchedEngine, free_port  # noqa: PLC0415
    from serve.models import resolve  # noqa: PLC0415
    from serve.up import stay_up  # noqa: PLC0415

    checkpoint, name = resolve(options.model)
    name = options.name or name
    config = EngineConfig(
        checkpoint=checkpoint,
        model=name,
        host=options.host,
        port=options.port or free_port(options.host),
        max_model_len=options.max_model_len,
        api_key=api_key_from(options.api_key_env),
        extra_args=extra,
    )
    device = detect()
    default_log = cache_dir() / "logs" / f"{name.replace('/', '--')}-{config.port}.log"
    engine = LaunchedEngine(
        vllm_command(config, device),
        model=name,
        host=config.host,
        port=config.port,
        log=Path(options.log) if options.log else default_log,
        api_key=config.api_key,
    )
    print(
        f"starting vLLM on {device.kind.value} with {checkpoint}\nlog in {engine.log}", flush=True
    )
    welcome = _welcome(engine.base_url, name, options.api_key_env)
    asyncio.run(stay_up(engine, waiting=_show_wait, ready=lambda: print(welcome, flush=True)))
    print("stopped", flush=True)
    return 0


def _show_wait(elapsed_s: int) -> None:
    """Show that time passes: on a terminal in place, elsewhere a line each ten seconds."""
    if sys.stdout.isatty():
        print(f"\rstarting: {elapsed_s} s", end="", flush=True)
    elif elapsed_s % 10 == 0:
        print(f"starting: {elapsed_s} s", flush=True)


def _welcome(base_url: str, model: str, api_key_env: str | None) -> str:
    """Say where the engine is and how to talk to it."""
    guarded = "\nkey       guards /v1 only; vLLM leaves /metrics and other routes open"
    key = f'os.environ["{api_key_env}"]' if api_key_env else '"none"'
    return f"""
base URL  {base_url}
model     {model}{guarded if api_key_env else ""}

{"import os" + chr(10) if api_key_env else ""}from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key={key})
reply = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello"}}]
)
print(reply.choices[0].message.content)

ready; Ctrl-C stops it"""


def _complain(error: Exception) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
