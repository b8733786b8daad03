"""`python -m serve.testing`: a FakeEngine in its own process, which prints its base URL."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve.testing import FakeEngine, Faults


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    options = _parser().parse_args(argv)
    try:
        faults = Faults.parse(options.fault)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.delay_ms:
        faults = replace(faults, delay_s=options.delay_ms / 1000)
    engine = FakeEngine(
        options.reply or "Hello from FakeEngine.",
        model=options.model,
        max_model_len=options.max_model_len,
        api_key=options.api_key,
        host=options.host,
        port=options.port,
        faults=faults,
        dev_mode=options.dev_mode,
        versioned_reply=options.versioned_reply,
        root=options.root,
        itl_s=options.itl_ms / 1000,
        kv_blocks=options.kv_blocks,
        most_running=options.most_running,
    )
    _run()(_serve(engine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve.testing", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--model", default="fake", help="the model's name")
    parser.add_argument("--max-model-len", type=int, default=32_768, metavar="TOKENS")
    parser.add_argument(
        "--reply", action="append", default=[], help="repeat to have one chosen by digest"
    )
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before the first token")
    parser.add_argument("--itl-ms", type=float, default=0.0, help="before every token")
    parser.add_argument("--dev-mode", action="store_true", help="vLLM's routes for new weights")
    parser.add_argument(
        "--versioned-reply", action="store_true", help="say which weights make each token"
    )
    parser.add_argument("--root", type=Path, help="the checkpoint it seems to be started with")
    parser.add_argument("--kv-blocks", type=int, default=0, help="size of the prefix cache")
    parser.add_argument(
        "--most-running", type=int, metavar="N", help="so many requests; others wait"
    )
    parser.add_argument(
        "--api-key", default=os.environ.get("VLLM_API_KEY"), help="default: $VLLM_API_KEY"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=N",
        help="a field of serve.testing.Faults, such as too_many_every=7",
    )
    return parser


async def _serve(engine: FakeEngine) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with engine:
        sys.stdout.write(engine.base_url + "\n")
        sys.stdout.flush()
        await stopped.wait()


def _run() -> Callable[[Coroutine[Any, Any, None]], None]:
    try:
        import uvloop  # noqa: PLC0415  # not there on every platform
    except ImportError:
        return asyncio.run
    return uvloop.run


if __name__ == "__main__":
    raise SystemExit(main())
