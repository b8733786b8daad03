"""`evalkit check-env`."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.arguments import Parser, env_args
from evalkit.errors import BadConfig


def command(words: Sequence[str]) -> int:
    """Check that an env keeps every rule of the env contract."""
    parser = Parser(prog="evalkit check-env", description=command.__doc__)
    parser.add_argument("env", help="key_door, pkg.module:Class or path/to/file.py:Class")
    parser.add_argument("--env-arg", action="append", metavar="NAME=VALUE", default=[])
    parser.add_argument("--seeds", type=int, default=1000, help="episodes of the oracle")
    typed = parser.parse_args(words)
    from envs import BadEnvParams, UnknownEnv, make  # noqa: PLC0415
    from envs.testing import check_env  # noqa: PLC0415

    arguments = env_args(typed.env_arg)
    try:
        make(typed.env, **arguments)
    except (UnknownEnv, BadEnvParams) as error:
        raise BadConfig(str(error)) from error
    report = check_env(lambda: make(typed.env, **arguments), seeds=typed.seeds)
    print(report)
    return 0 if report.ok else 1
