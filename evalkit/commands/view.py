"""`evalkit view`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalkit.arguments import Parser
from evalkit.errors import BadConfig

PORT = 8780


def command(words: Sequence[str]) -> int:
    """Show a folder of runs as web pages, live while runs go on."""
    parser = Parser(prog="evalkit view", description=command.__doc__)
    parser.add_argument(
        "dir",
        type=Path,
        nargs="?",
        default=Path("results"),
        metavar="DIR",
        help="folder of runs, or a run (default results)",
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"default {PORT}; 0: any free one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="another address than loopback needs --token-env"
    )
    parser.add_argument(
        "--token-env", metavar="VAR", help="environment variable with a token that pages ask for"
    )
    parser.add_argument("--open", action="store_true", help="open the browser")
    typed = parser.parse_args(words)
    if not typed.dir.is_dir():
        raise BadConfig(f"{typed.dir} is not a folder: expected one with runs, such as results")
    from evalkit.debug.page import DebugPages  # noqa: PLC0415
    from evalkit.environment import variable  # noqa: PLC0415
    from evalkit.view.app import View  # noqa: PLC0415
    from evalkit.view.guard import Guard, required_token  # noqa: PLC0415
    from evalkit.view.server import Server  # noqa: PLC0415

    value = variable(typed.token_env) if typed.token_env else ""
    token = required_token(typed.host, typed.token_env, value)
    view = View(typed.dir)
    view.add(*DebugPages(view.folder).routes())
    names = view.folder.names()
    if not names:
        raise BadConfig(
            f"{typed.dir} holds no runs: expected folders with a manifest.json, as "
            f"`python -m evalkit --out {typed.dir}` makes them"
        )
    with Server(typed.host, typed.port, view.answer) as server:
        view.guard = Guard(token=token, port=server.port)
        counted = f"{len(names)} run{'s' * (len(names) != 1)}"
        print(f"{counted} of {typed.dir} on {server.url} (Ctrl-C ends it)", flush=True)
        if typed.open:
            import webbrowser  # noqa: PLC0415

            webbrowser.open(server.url)
        server.serve_forever()
    return 0
