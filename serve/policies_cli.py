"""The command `policies`: what is published, and what each name means.

With --url it asks a running gateway; without, it works on the state folder, and a gateway that
runs on it follows within two seconds.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from serve.errors import AdminError, ConfigError, PolicyError, StateError, UnknownPolicy
from serve.wire import BadProbes, BadReference, PolicyKind, PolicyRef, Probes, SwapMode

if TYPE_CHECKING:
    from serve.client import AdminClient, PrunedVersions
    from serve.policies.pruning import Pruned
    from serve.policies.store import PolicyStore

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_MOST_VERSION = 999_999
_EPILOG = """examples:
  python -m serve policies publish my-policy ./checkpoint --metric won=0.41
  python -m serve policies list
  python -m serve policies show my-policy@7
  python -m serve policies prune my-policy --versions 2-4,6 --url http://127.0.0.1:8000
  python -m serve policies rollback my-policy@6 --url http://127.0.0.1:8000 --api-key-env KEY

exit codes: 0 done, 1 refused, 2 wrong usage
"""


def add_parser(commands: "_Commands") -> None:
    """Add `policies` to the commands of a parser."""
    group = commands.add_parser(
        "policies",
        help="list, show, publish, roll back and prune versions of policies",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "list", "show all policies and what their names mean")
    show = _action(actions, "show", "show one policy's versions, or all of one version")
    show.add_argument("policy", metavar="NAME[@VERSION]")
    publish = _action(actions, "publish", "make a checkpoint a policy's newest version")
    publish.add_argument("policy", metavar="NAME[@VERSION]", help="default: the next version")
    publish.add_argument("checkpoint", metavar="FOLDER", help="a whole model, or a LoRA adapter")
    publish.add_argument("--kind", type=PolicyKind, choices=list(PolicyKind), help="insist on it")
    publish.add_argument("--parent", type=int, metavar="VERSION", help="what it was trained from")
    publish.add_argument(
        "--metric", action="append", default=[], type=_metric, metavar="NAME=NUMBER", help="kept"
    )
    publish.add_argument(
        "--probes", metavar="FILE", help="JSON: what a replica must compute before it serves it"
    )
    prune = _action(actions, "prune", "delete the weights of versions that are not in use")
    prune.add_argument("policy", metavar="NAME")
    prune.add_argument(
        "--versions", type=_versions, required=True, metavar="LIST", help="such as 3-7,9"
    )
    rollback = _action(actions, "rollback", "let a name mean an older version again")
    rollback.add_argument("policy", metavar="NAME@VERSION")
    for changing in (publish, rollback):
        changing.add_argument(
            "--swap",
            type=SwapMode,
            choices=list(SwapMode),
            default=SwapMode.WAIT,
            help="what becomes of requests in flight; with --url (default: %(default)s)",
        )


def run(options: argparse.Namespace) -> int:
    """Run what was parsed and return the exit code."""
    try:
        ref = PolicyRef.parse(options.policy) if hasattr(options, "policy") else None
        lines = _at_gateway(options, ref) if options.url else _at_store(options, ref)
    except (ConfigError, BadReference, BadProbes) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (PolicyError, StateError, AdminError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for line in lines:
        sys.stdout.write(f"{line}\n")
    return 0


def _action(actions: "_Commands", name: str, meaning: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=meaning, description=meaning)
    where = action.add_mutually_exclusive_group()
    where.add_argument("--url", help="a running gateway, http://HOST:PORT")
    where.add_argument("--state", metavar="DIR", help="a state folder (default: in the cache)")
    action.add_argument("--api-key-env", metavar="VAR", help="environment variable with the key")
    return action


def _metric(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, got {text!r}")
    return name, float(number)


def _versions(text: str) -> list[int]:
    """Read `3-7,9`, both ends included."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdigit() and (last.isdigit() if dash else True)):
            raise argparse.ArgumentTypeError(f"expected versions such as 3-7,9, got {text!r}")
        found.update(range(int(first), min(int(last or first), _MOST_VERSION) + 1))
    return sorted(found - {0})


def _probes(options: argparse.Namespace) -> Probes | None:
    """Read the file of --probes; raise BadProbes."""
    if options.probes is None:
        return None
    try:
        with open(options.probes, "rb") as file:  # noqa: PTH123  # pathlib is not for --help
            return Probes.from_json(json.load(file))
    except (OSError, ValueError, TypeError) as error:
        raise BadProbes(f"{options.probes}: {error}") from error


def _pruned(name: str, pruned: "Pruned | PrunedVersions") -> Iterable[str]:
    for version in pruned.versions:
        yield f"{name}@{version} pruned"
    for version, why in pruned.kept.items():
        yield f"{name}@{version} stays: {why}"
    yield f"{pruned.freed_bytes / 1e6:.1f} MB freed"


def _needed(ref: PolicyRef | None) -> tuple[str, int]:
    if ref is None or ref.version is None:
        raise BadReference(f"expected NAME@VERSION, got {str(ref)!r}")
    return ref.name, ref.version


def _at_store(options: argparse.Namespace, ref: PolicyRef | None) -> Iterable[str]:
    from pathlib import Path  # noqa: PLC0415  # not for --help

    from serve.config import cache_dir  # noqa: PLC0415
    from serve.policies.store import PolicyStore  # noqa: PLC0415

    state = Path(options.state) if options.state else cache_dir() / "state"
    store = PolicyStore(state / "policies")
    if options.action == "publish":
        assert ref is not None
        info = store.publish(
            ref.name,
            Path(options.checkpoint),
            version=ref.version,
            kind=options.kind,
            parent=options.parent,
            metrics=dict(options.metric),
            probes=_probes(options),
        )
        return [info.label]
    if options.action == "prune":
        return _pruned(options.policy, store.prune(options.policy, options.versions))
    if options.action == "rollback":
        return [store.rollback(*_needed(ref)).label]
    return _stored(store, ref)


def _stored(store: "PolicyStore", ref: PolicyRef | None) -> Iterable[str]:
    if ref is None:
        return [
            _policy_line(name, store.latest(name), len(store.versions(name)))
            for name in store.policies()
        ]
    latest = store.latest(ref.name)
    infos = store.versions(ref.name) if ref.version is None else [store.info(*_needed(ref))]
    lines = []
    for info in infos:
        lines.append(
            _version_line(info.label, info.kind, info.created.timestamp(), info.size_bytes)
            + _notes(info.version == latest, info.metrics)
            + ("  probed" if info.probes else "")
            + ("  pruned" if info.is_pruned else "")
        )
        if ref.version is not None:
            told = (
                *(("base", f"{info.name}@{info.base}"), ("parent", info.parent)),
                *(("git sha", info.git_sha), ("sha256", info.digest)),
                *(("weights", info.path), ("source", info.source)),
            )
            lines += [f"  {key:8} {value}" for key, value in told if value not in (None, "")]
    return lines


def _at_gateway(options: argparse.Namespace, ref: PolicyRef | None) -> Iterable[str]:
    from serve.client import AdminClient  # noqa: PLC0415  # not for --help
    from serve.config import api_key_from  # noqa: PLC0415

    with AdminClient(options.url, api_key_from(options.api_key_env)) as client:
        if options.action == "publish":
            assert ref is not None
            published = client.publish(
                ref.name,
                options.checkpoint,
                version=ref.version,
                kind=options.kind,
                parent=options.parent,
                metrics=dict(options.metric),
                swap=options.swap,
                probes=_probes(options),
            )
            return [f"{published.name}@{published.version}"]
        if options.action == "prune":
            return list(_pruned(options.policy, client.prune(options.policy, options.versions)))
        if options.action == "rollback":
            name, version = _needed(ref)
            client.rollback(name, version, swap=options.swap)
            return [f"{name}@{version}"]
        return _live(client, ref)


def _live(client: "AdminClient", ref: PolicyRef | None) -> Iterable[str]:
    policies = client.policies()
    if ref is None:
        return [
            _policy_line(policy.name, policy.latest, len(policy.versions)) for policy in policies
        ]
    lines = [
        _version_line(
            f"{version.name}@{version.version}", version.kind, version.created_s, version.size_bytes
        )
        + _notes(version.version == policy.latest, version.metrics)
        + (f"  live on {', '.join(version.live_on)}" if version.live_on else "")
        for policy in policies
        for version in policy.versions
        if policy.name == ref.name and ref.version in (None, version.version)
    ]
    if not lines:
        raise UnknownPolicy(f"the gateway has no {ref}")
    return lines


def _policy_line(name: str, latest: int | None, versions: int) -> str:
    return f"{name:40} means {name}@{latest}, of {versions}"


def _version_line(label: str, kind: PolicyKind, created_s: float, size_bytes: int) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415  # not for --help

    when = datetime.fromtimestamp(created_s, UTC)
    return f"{label:40} {kind.value:4} {when:%Y-%m-%d %H:%M:%SZ} {size_bytes / 1e6:10.1f} MB"


def _notes(is_latest: bool, metrics: Mapping[str, float]) -> str:
    told = [f"{name}={number:g}" for name, number in metrics.items()]
    return "".join(f"  {note}" for note in (*(["latest"] if is_latest else []), *told))
