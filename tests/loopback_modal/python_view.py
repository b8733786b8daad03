"""The interpreter of the containers: this venv's packages, without what is installed editable.

A container of the cloud has what its image installed and what the app ships, and no checkout. The
view is a venv of links to every entry of site-packages, but for `.pth` files that point elsewhere
and the metadata of packages installed from a folder: `import serve` works only if it was shipped,
`importlib.metadata.version("palaestra")` only if its metadata was. Children that a container starts
by `sys.executable` see the same, with -I or without.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from pathlib import Path


def make_view(folder: Path) -> Path:
    """Make the view in an empty folder; return its interpreter."""
    packages = Path(sysconfig.get_paths()["purelib"])
    target = folder / packages.relative_to(sys.prefix)
    target.mkdir(parents=True)
    for entry in packages.iterdir():
        if not (_points_elsewhere(entry, packages) or _is_editable(entry)):
            (target / entry.name).symlink_to(entry)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder / "pyvenv.cfg")
    scripts = folder / "bin"
    scripts.mkdir()
    for entry in Path(sys.executable).parent.iterdir():
        if entry.is_file() and not _is_script(entry):
            (scripts / entry.name).symlink_to(entry.resolve())
    return scripts / Path(sys.executable).name


def _points_elsewhere(entry: Path, packages: Path) -> bool:
    """True for a `.pth` file that puts another folder on the path."""
    if entry.suffix != ".pth":
        return False
    lines = [line.strip() for line in entry.read_text().splitlines()]
    folders = [line for line in lines if line and not line.startswith(("import ", "#"))]
    return any(not (packages / line).resolve().is_relative_to(packages) for line in folders)


def _is_editable(entry: Path) -> bool:
    """True for the metadata of a package that was installed from a folder."""
    origin = entry / "direct_url.json"
    if entry.suffix != ".dist-info" or not origin.is_file():
        return False
    info = json.loads(origin.read_text()).get("dir_info", {})
    return bool(info.get("editable"))


def _is_script(entry: Path) -> bool:
    """True for a script: its first line names an interpreter, maybe that of the other venv."""
    with entry.open("rb") as file:
        return file.read(2) == b"#!"
