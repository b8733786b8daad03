"""Which weights a FakeEngine serves: a digest of a folder's bytes stands for what they would say.

So an answer shows which weights made it, whatever label they go by. What is refused, and when, is
what vLLM refuses with `serve.engine.weights_engine`. Knows no route and no connection.
"""

from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final

from serve.engine.tensors import ADAPTER_CONFIG, differences, shapes_of, weight_files
from serve.errors import BadCheckpoint
from serve.testing.refusals import Refusal, failed

MARK: Final = "palaestra-fake.txt"
"""A file beside the weights, or alone in a folder, whose first word is their name."""
UNLABELLED: Final = "default"
"""vLLM's label for the weights that it was started with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights in memory: a whole model's, or an adapter's."""

    name: str = "boot"
    """What the mark says, or else the first 8 hex digits of the digest."""
    salt: bytes = b""
    """The digest's beginning; empty for weights that come from no folder."""
    root: str | None = None


BOOT: Final = Weights()


class Served:
    """What one engine serves at this moment."""

    def __init__(self, model: str, root: Path | None = None, *, is_stale: bool = False) -> None:
        """`root` is the checkpoint it seems to be started with; raise BadCheckpoint."""
        self.model = model
        self.is_stale = is_stale
        """Whether new weights are taken and labelled, while the old ones go on answering."""
        self._root = root
        self.boot()

    def boot(self) -> None:
        """Serve what a start serves."""
        self.base = BOOT if self._root is None else _read(self._root)
        self.label = UNLABELLED
        """What the weights were said to be; nobody checks it."""
        self.adapters: dict[str, Weights] = {}
        self._is_updating = False
        self._held: Weights | None = None

    @property
    def is_boot(self) -> bool:
        """Whether the weights come from no folder."""
        return self.base is BOOT

    def weights_of(self, model: object) -> Weights | None:
        """Return the weights that answer for a model, None for one that is not served."""
        return self.base if model == self.model else self.adapters.get(str(model))

    def start_update(self) -> None:
        """Open an update."""
        if self._is_updating:
            raise failed(
                "start_weight_update called while a weight update is already active. "
                "Call finish_weight_update first."
            )
        self._is_updating = True

    def update(self, path: object, *, apply: bool) -> None:
        """Hold the weights of a folder ready, or serve those that are; a failure ends the update.

        Whatever is wrong with them leaves the old ones.
        """
        if not self._is_updating:
            raise failed("start_weight_update must be called before update_weights.")
        self._is_updating = False
        if not isinstance(path, str):
            raise failed("Folder.__init__() missing 1 required positional argument: 'path'")
        if not apply:
            self._held = self._fitting(Path(path))
        elif self._held is None or self._held.root != path:
            raise failed(f"{path} has to be read before it is applied")
        else:
            self.base, self._held = self._taken(self._held), None
        self._is_updating = True

    def finish_update(self, label: str | None) -> None:
        """Close the update."""
        if not self._is_updating:
            raise failed("finish_weight_update called without a matching start_weight_update.")
        self._is_updating, self._held = False, None
        self.label = self.label if label is None else label

    def load_adapter(self, name: str, path: str, *, in_place: bool) -> str:
        """Serve an adapter besides, and say so."""
        if not name or not path:
            raise _misused("Both 'lora_name' and 'lora_path' must be provided.")
        if name == self.model:
            raise _misused(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self.adapters and not in_place:
            raise _misused(
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
        folder = Path(path)
        files = sorted(folder.glob("*.safetensors"))
        if not (files and (folder / ADAPTER_CONFIG).is_file()) and not (folder / MARK).is_file():
            raise _not_found(f"Loading lora {name} failed: No adapter found for {path}")
        self.adapters[name] = self._taken(_weights(folder, files))
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload_adapter(self, name: str) -> str:
        """Serve an adapter no more, and say so."""
        if not name:
            raise _misused("'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self.adapters:
            raise _not_found(f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _taken(self, new: Weights) -> Weights:
        return replace(self.base, root=new.root) if self.is_stale else new

    def _fitting(self, folder: Path) -> Weights:
        """Read a folder whose tensors are those of the served one; raise Refusal."""
        try:
            held = _read(folder)
            served = None if self.base.root is None else Path(self.base.root)
            if served is not None and not _is_mark_only(served) and not _is_mark_only(folder):
                expected = shapes_of(served, weight_files(served))
                if different := differences(expected, shapes_of(folder, weight_files(folder))):
                    raise failed(f"{folder} does not fit the model that is served: {different}")
        except (BadCheckpoint, OSError) as error:
            raise failed(str(error)) from error
        return held


def _read(folder: Path) -> Weights:
    """Read a full checkpoint; raise BadCheckpoint."""
    if _is_mark_only(folder):
        return _weights(folder, [])
    files = weight_files(folder)
    shapes_of(folder, files)
    return _weights(folder, [folder / file for file in files])


def _is_mark_only(folder: Path) -> bool:
    return (folder / MARK).is_file() and not any(folder.glob("*.safetensors"))


def _weights(folder: Path, files: list[Path]) -> Weights:
    digest = blake2b()
    for file in files:
        digest.update(file.read_bytes())
    name = digest.hexdigest()[:8]
    if (folder / MARK).is_file():
        mark = (folder / MARK).read_text()
        digest.update(mark.encode())
        name = (mark.split() or [name])[0]
    return Weights(name=name, salt=digest.digest()[:8], root=str(folder))


def _misused(message: str) -> Refusal:
    return Refusal(message, kind="InvalidUserInput")


def _not_found(message: str) -> Refusal:
    return Refusal(message, status=404, kind="NotFoundError")
