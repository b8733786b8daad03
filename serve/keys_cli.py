"""The commands `keys` and `users`: who may use the gateway, from the machine that it runs on.

They work on the state folder alone, whether or not a gateway runs; one that does sees every change
within a second. Secrets go to stdout once, explanations to stderr.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from serve.errors import ConfigError, StateError
from serve.wire import Scope

if TYPE_CHECKING:
    from serve.accounts.records import KeyInfo
    from serve.accounts.store import AccountStore

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EPILOG = """examples:
  python -m serve keys create --name ann --scope infer,eval --rpm 600
  python -m serve keys revoke ak_1a2b3c4d
  echo "a long password" | python -m serve users set ann --scope admin

exit codes: 0 done, 1 the state cannot be read or written, 2 wrong usage
"""
_LIMITS = {
    "rpm": "requests in any 60 seconds",
    "tpm": "tokens a minute, of prompts and completions",
    "concurrency": "requests in flight",
    "budget-tokens": "tokens in all",
}


def add_parser(commands: "_Commands") -> None:
    """Add `keys` and `users` to the commands of a parser."""
    keys = _group(commands, "keys", "create, list, revoke and rotate API keys")
    create = _action(keys, "create", "make a key and print it, once")
    create.add_argument("--name", default="", help="whose it is or what for")
    _add_scope(create)
    for name, meaning in _LIMITS.items():
        create.add_argument(f"--{name}", type=int, metavar="N", help=f"{meaning} (default: any)")
    _action(keys, "list", "show all keys, without their secrets")
    for name, meaning in (
        ("revoke", "end a key for good, within a second"),
        ("rotate", "give a key a new secret and print it, once; the old one ends"),
    ):
        _action(keys, name, meaning).add_argument("id", metavar="ID", help="such as ak_1a2b3c4d")
    users = _group(commands, "users", "set, list and remove people who log in with a password")
    put = _action(users, "set", "make a user or replace the password, asked for or from stdin")
    put.add_argument("name", metavar="NAME")
    _add_scope(put)
    _action(users, "list", "show all users")
    _action(users, "remove", "remove a user").add_argument("name", metavar="NAME")


def run(options: argparse.Namespace) -> int:
    """Run what was parsed and return the exit code."""
    try:
        return _run(options)
    except (ConfigError, StateError) as error:
        _explain(f"error: {error}")
        return 2 if isinstance(error, ConfigError) else 1


def _group(commands: "_Commands", name: str, meaning: str) -> "_Commands":
    parser = commands.add_parser(
        name,
        help=meaning,
        description=meaning.capitalize() + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(dest="action", required=True, metavar="ACTION")


def _action(actions: "_Commands", name: str, meaning: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=meaning, description=meaning.capitalize() + ".")
    parser.add_argument(
        "--state", metavar="DIR", help="the gateway's state (default: in the cache)"
    )
    parser.add_argument(
        "--database", metavar="URL", help="an SQLAlchemy URL instead of the folder's"
    )
    return parser


def _add_scope(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scope",
        type=_scopes,
        default=frozenset({Scope.INFER}),
        metavar="A,B",
        help=f"of {', '.join(Scope)} (default: infer)",
    )


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return frozenset(Scope(word.strip()) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected one or more of {','.join(Scope)}, got {text!r}"
        ) from None


def _run(options: argparse.Namespace) -> int:
    from pathlib import Path  # noqa: PLC0415  # none of these for --help

    from serve.accounts.store import AccountStore  # noqa: PLC0415
    from serve.config import cache_dir  # noqa: PLC0415

    act = _ACTIONS[options.command, options.action]
    folder = Path(options.state) if options.state else cache_dir() / "state"
    store = AccountStore.open(folder, url=options.database)
    try:
        act(store, options)
    finally:
        store.close()
    return 0


def _create_key(store: "AccountStore", options: argparse.Namespace) -> None:
    from serve.accounts.limits import Limits  # noqa: PLC0415  # not for --help

    limits = Limits(
        rpm=options.rpm,
        tpm=options.tpm,
        concurrency=options.concurrency,
        budget_tokens=options.budget_tokens,
    )
    is_first = not store.keys()
    key, text = store.create_key(options.name, options.scope, limits, actor=_actor())
    _explain(f"{key.id} in {store.place}: {_words(key.scopes)}; {_limits(key)}")
    if is_first:
        _explain("it is the first key: from now on the gateway refuses requests without one")
    _explain("this is the only time that the key is shown:")
    _say(text)


def _list_keys(store: "AccountStore", _: argparse.Namespace) -> None:
    used = store.snapshot().used_tokens
    keys = store.keys()
    rows = [
        (
            key.id,
            key.name or "-",
            _words(key.scopes),
            _limits(key),
            str(used.get(key.id, 0)),
            _time(key.created_s),
            _time(key.last_used_s),
            "live" if key.revoked_s is None else f"revoked {_time(key.revoked_s)}",
        )
        for key in keys
    ]
    _table("ID NAME SCOPES LIMITS TOKENS CREATED LAST-USED STATE".split(), rows)


def _revoke_key(store: "AccountStore", options: argparse.Namespace) -> None:
    key = store.revoke(options.id, actor=_actor())
    _explain(f"{key.id} is revoked since {_time(key.revoked_s)}")


def _rotate_key(store: "AccountStore", options: argparse.Namespace) -> None:
    text = store.rotate(options.id, actor=_actor())
    _explain("the old key is dead; this is the only time that the new one is shown:")
    _say(text)


def _set_user(store: "AccountStore", options: argparse.Namespace) -> None:
    user = store.set_password(options.name, _password(), options.scope, actor=_actor())
    _explain(f"{user.name} may log in: {_words(user.scopes)}")


def _list_users(store: "AccountStore", _: argparse.Namespace) -> None:
    rows = [
        (user.name, _words(user.scopes), _time(user.created_s), _time(user.changed_s))
        for user in store.users()
    ]
    _table("NAME SCOPES CREATED CHANGED".split(), rows)


def _remove_user(store: "AccountStore", options: argparse.Namespace) -> None:
    store.remove_user(options.name, actor=_actor())
    _explain(f"{options.name} is removed")


_ACTIONS: dict[tuple[str, str], "Callable[[AccountStore, argparse.Namespace], None]"] = {
    ("keys", "create"): _create_key,
    ("keys", "list"): _list_keys,
    ("keys", "revoke"): _revoke_key,
    ("keys", "rotate"): _rotate_key,
    ("users", "set"): _set_user,
    ("users", "list"): _list_users,
    ("users", "remove"): _remove_user,
}


def _password() -> str:
    """Ask twice on a terminal, else read one line."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    from getpass import getpass  # noqa: PLC0415  # not for --help

    password = getpass("password: ")
    if getpass("again: ") != password:
        raise ConfigError("the two passwords differ; nothing was changed")
    return password


def _actor() -> str:
    from getpass import getuser  # noqa: PLC0415  # not for --help

    try:
        return f"cli:{getuser()}"
    except (KeyError, OSError):  # a user without a name
        return "cli:unknown"


def _words(scopes: frozenset[Scope]) -> str:
    return ",".join(scope for scope in Scope if scope in scopes)


def _limits(key: "KeyInfo") -> str:
    named = {name: getattr(key.limits, name.replace("-", "_")) for name in _LIMITS}
    return " ".join(f"{name}={value}" for name, value in named.items() if value) or "no limits"


def _time(unix_s: float | None) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415  # not for --help

    return "-" if unix_s is None else f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%MZ}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        _say("  ".join(cells).rstrip())


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a command line


def _explain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  # a command line
