"""Which versions may lose their weights, and the loss itself. Knows no replica and no pointer.

What stays of a pruned version is its manifest, whose `path` is null then, and its number.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.policies import disk, manifest
from serve.policies.manifest import PolicyInfo
from serve.wire import PolicyKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What became of a wish to prune."""

    versions: tuple[int, ...]
    """Those whose weights are gone now."""
    kept: Mapping[int, str]
    """Those that were asked for and stay -> why."""
    freed_bytes: int


def spared(
    infos: Mapping[int, PolicyInfo], asked: Collection[int], held: Mapping[int, str]
) -> dict[int, str]:
    """Return which of the versions asked for have to stay, and why.

    `held` are those that are in use, with the reason of each.
    """
    kept = {}
    for version in sorted(set(asked)):
        info = infos.get(version)
        if info is None:
            kept[version] = "there is no such version"
        elif version in held:
            kept[version] = held[version]
        elif info.is_pruned:
            kept[version] = "it is pruned already"
        elif info.path is None:
            kept[version] = "its weights are not here"
        elif info.path.name != f"{version:06d}":
            kept[version] = f"its files are not the store's: they lie at {info.path}"
    going = set(asked) - kept.keys()
    for version in sorted(going):
        over = [
            info.version
            for info in infos.values()
            if info.kind is PolicyKind.LORA and info.base == version and info.path is not None
        ]
        if staying := [each for each in over if each not in going]:
            kept[version] = f"version {staying[-1]} is a LoRA over it"
    return kept


def strip(folder: Path, info: PolicyInfo, keep: Collection[str]) -> int:
    """Delete all of a version's folder but the files named; return how many bytes that were.

    The manifest says so first: whoever reads it afterwards looks for no weights.
    """
    disk.replace(folder / "manifest.json", manifest.dumps(info, None) + "\n")
    freed_bytes = 0
    for path in folder.iterdir():
        if path.name not in keep:
            freed_bytes += path.stat().st_size
            path.unlink()
    disk.sync(folder)
    return freed_bytes
