"""Which files of a folder a container's processes hold: descriptors, mappings, working folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def first_open_file(pid: int, folder: Path) -> str | None:
    """One path in the folder that the process or a descendant of it holds, else None."""
    inside = str(folder.resolve())
    for one in _family(pid):
        for path in _held(one):
            if path == inside or path.startswith(f"{inside}/"):
                return path
    return None


def _held(pid: int) -> Iterator[str]:
    process = Path(f"/proc/{pid}")
    links = [process / "cwd"]
    try:
        links += list((process / "fd").iterdir())
        for line in (process / "maps").read_text().splitlines():
            yield line.partition("/")[1] + line.partition("/")[2]
    except OSError:  # it has just gone
        return
    for link in links:
        try:
            yield str(link.readlink())
        except OSError:  # closed meanwhile
            continue


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
    except OSError:  # it has just gone
        return
