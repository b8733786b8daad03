"""Functions that look around in their container, and hold files of a volume open."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import modal

STATE = os.environ.get("LOOPBACK_STATE", "/mnt/state")
image = modal.Image.debian_slim().env({"LOOPBACK_STATE": STATE})
app = modal.App("probe", image=image.add_local_python_source("envs"))
state = modal.Volume.from_name("probe-state", create_if_missing=True)


@app.function()
def imports(name: str, by_a_child: bool = False) -> bool:
    """True if the module can be imported here, or in an isolated child."""
    flags = ["-I"] if by_a_child else []
    ran = subprocess.run([sys.executable, *flags, "-c", f"import {name}"], check=False)
    return ran.returncode == 0


@app.function()
def version(name: str) -> str:
    """The version of an installed package, empty if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


@app.function(volumes={STATE: state})
def reload(hold: bool) -> str:
    """Reload the volume, with or without holding a file of it open; say what happened."""
    file = (Path(STATE) / "held").open("w") if hold else None
    try:
        state.reload()
    except RuntimeError as error:
        return str(error)
    finally:
        if file is not None:
            file.close()
    return "reloaded"
