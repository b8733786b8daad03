"""Brings a model into the cache volume and makes it version 1 of its policy. Runs in a container.

A folder appears in one rename, whole, so a container that finds one can serve it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from serve.deploy.config import ServingConfig
from serve.deploy.plan import volume_path
from serve.errors import PullFailed
from serve.models import download, is_hub_id
from serve.policies.store import PolicyStore

Say = Callable[[str], None]


def prefetch(config: ServingConfig, say: Say) -> str:
    """Return, in a line, what is there now; raise PullFailed and BadCheckpoint."""
    folder = Path(str(volume_path(config)))
    if (folder / "config.json").is_file():
        say(f"{config.model} is in {folder} already")
    elif not is_hub_id(config.model):
        raise PullFailed(
            f"{folder} holds no config.json: upload the model from where it lies, with "
            "python -m serve prefetch --target modal"
        )
    else:
        _bring(config, folder, say)
    store = PolicyStore(Path(str(config.deploy.volumes.root / "policies")))
    info = store.register(config.policy_name, folder)
    return f"{info.name}@{info.version} is {folder}"


def _bring(config: ServingConfig, folder: Path, say: Say) -> None:
    say(f"downloading {config.model} at {config.revision or 'its newest revision'}")
    partial = folder.with_name(f".{folder.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    download(config.model, config.revision, partial)
    # What the hub's client remembers of the download is of no use to an engine.
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.rename(folder)
