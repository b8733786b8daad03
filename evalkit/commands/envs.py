"""`evalkit envs`."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.arguments import Parser


def command(words: Sequence[str]) -> int:
    """List the envs that are shipped."""
    Parser(prog="evalkit envs", description=command.__doc__).parse_args(words)
    from envs import make  # noqa: PLC0415
    from envs.registry import SHIPPED  # noqa: PLC0415

    for name in sorted(SHIPPED):
        env = make(name)
        params = " ".join(f"{key}={value}" for key, value in env.params.items())
        print(f"{name}  version {env.version}  {params}")
    return 0
