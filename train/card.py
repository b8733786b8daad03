"""What of a checkpoint is for others, and the page that says what it is.

A checkpoint also holds what only its own run can use (optimizer, random state, groups that were not
trained on yet), and paths of the machine it was made on: neither leaves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.errors import BadModel

ADAPTER = "adapter_config.json"
README = "README.md"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.*"),
    *("vocab.*", "merges.txt", "spiece.model"),
)
DESCRIPTION = ("config.json", "generation_config.json", ADAPTER)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is known of a checkpoint, for its page."""

    name: str
    base: str | None = None
    """What was trained: a hub id, or a bare name; None where it is not known."""
    step: int | None = None
    env: str | None = None
    env_args: Mapping[str, Any] = field(default_factory=dict)
    strategy: str | None = None
    metrics: Mapping[str, float | int | None] = field(default_factory=dict)
    adapter: bool = False


def is_hub_id(name: str) -> bool:
    """Whether a model goes by ORG/NAME and is no folder here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def without_folders(model: str) -> str:
    """Return a model's hub id, or else the last part of its path."""
    return model if is_hub_id(model) else Path(model).name


def published_files(folder: Path, tokenizer: Path | None = None) -> dict[str, Path]:
    """Return the files of a checkpoint that others can use, by name.

    `tokenizer` is a folder to take the tokenizer from where the checkpoint, an adapter, has none.

    Raises:
        BadModel: there are no weights.

    """
    if not any(_matching(folder, WEIGHTS)):
        raise BadModel(f"{folder} is no checkpoint: expected model.safetensors or an adapter")
    found = dict(_matching(folder, (*WEIGHTS, *TOKENIZER, *DESCRIPTION)))
    if tokenizer is not None and not any(_matching(folder, TOKENIZER)):
        found |= dict(_matching(tokenizer, TOKENIZER))
    return dict(sorted(found.items()))


def adapter_config(folder: Path, base: str | None) -> bytes:
    """Return an adapter's config, whose base model is named as others can find it.

    Raises:
        BadModel: it is not one.

    """
    path = folder / ADAPTER
    try:
        told = json.loads(path.read_bytes())
        known = base or without_folders(str(told["base_model_name_or_path"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{path} is damaged: {type(error).__name__} {error}") from error
    return json.dumps({**told, "base_model_name_or_path": known}, indent=2).encode() + b"\n"


def card(about: About, repo: str) -> str:
    """Return README.md."""
    lines = [*_front_matter(about), "", f"# {about.name}", "", *_origin(about)]
    metrics = {key: value for key, value in about.metrics.items() if value is not None}
    if metrics:
        lines += ["", "In the step before this checkpoint, on its training episodes:", ""]
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:g} |" for name, value in metrics.items()]
    lines += ["", *_use(about, repo), ""]
    return "\n".join(lines)


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_file():
                yield path.name, path


def _front_matter(about: About) -> list[str]:
    tags = ["grpo", "reinforcement-learning", "palaestra"]
    if about.env is not None:
        tags.append(re.sub(r"[^A-Za-z0-9._-]+", "-", about.env))
    lines = ["---", f"library_name: {'peft' if about.adapter else 'transformers'}"]
    lines += ["pipeline_tag: text-generation"]
    if about.base is not None and _HUB_ID.fullmatch(about.base):
        lines += [f"base_model: {about.base}"]
    return [*lines, "tags:", *(f"- {tag}" for tag in tags), "---"]


def _origin(about: About) -> list[str]:
    what = "A LoRA adapter" if about.adapter else "The full weights of a policy"
    of = f" for {about.base}" if about.adapter and about.base else ""
    came = f" that began as {about.base}" if about.base and not about.adapter else ""
    step = "" if about.step is None else f", step {about.step}"
    lines = [f"{what}{of}{came}, trained by GRPO with Palaestra{step}."]
    if about.env is not None:
        args = json.dumps(dict(about.env_args), sort_keys=True) if about.env_args else "defaults"
        lines += ["", f"- env: `{about.env}`, {args}"]
        lines += [f"- history strategy: `{about.strategy}`"]
    return lines


def _use(about: About, repo: str) -> list[str]:
    folder = repo.rpartition("/")[2]
    lines = ["```bash", f"python -m train checkpoints pull {repo} --to {folder}"]
    if about.adapter:
        base = about.base or "BASE"
        lines += [
            f"python -m serve up --model {base} --name policy --lora",
            f"python -m serve policies publish policy {folder} --url http://127.0.0.1:8000",
        ]
    else:
        lines += [f"python -m serve up --model {folder} --name policy"]
    if about.env is not None:
        call = f"python -m evalkit --model http://127.0.0.1:8000#policy --env {about.env}"
        lines += [f"{call} --strategy {about.strategy}"]
    return [*lines, "```"]
