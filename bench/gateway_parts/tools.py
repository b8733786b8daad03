"""What the benchmark makes for itself once and keeps in the cache: two C programs, peers' venvs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PARTS = Path(__file__).resolve().parent
INSTALL_S = 1800


class Missing(Exception):
    """A peer or a tool is not on this machine; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where things lie."""

    root: Path
    """Of the repository."""
    cache: Path
    """What is kept between runs."""
    scratch: Path
    """Logs and state of this run."""

    def program(self, name: str) -> str:
        """Return the path of one of our C programs, compiled unless this very source was before."""
        sources = sorted(PARTS.glob("*.[ch]"))
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
        binary = self.cache / f"{name}-{digest[:12]}"
        if not binary.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            command = [find("gcc"), "-O2", "-o", str(binary), str(PARTS / f"{name}.c")]
            subprocess.run(command, check=True, timeout=120)
        return str(binary)

    def venv(self, pin: str) -> Path:
        """Return the bin folder of the venv that holds `pin` and what it needs."""
        name = pin.partition("==")[0].partition("[")[0]
        folder = self.cache / "venvs" / name
        stamp = folder / "installed"
        if not (stamp.exists() and stamp.read_text() == pin):
            python = folder / "bin" / "python"
            print(f"installing {pin} ...", file=sys.stderr, flush=True)
            _quietly([sys.executable, "-m", "venv", "--clear", str(folder)], pin)
            _quietly([str(python), "-m", "pip", "install", "--quiet", pin], pin)
            stamp.write_text(pin)
        return folder / "bin"


def find(program: str) -> str:
    """Return the path of a program of the machine."""
    path = shutil.which(program)
    if path is None:
        raise Missing(f"not installed: {program} is not on the PATH")
    return path


def _quietly(command: list[str], pin: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if ran.returncode:
        why = ran.stderr.strip().rpartition("\n")[2][:200]
        raise Missing(f"not installed: {pin}: {why}")
