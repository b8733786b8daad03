"""From a recipe to a folder that vLLM serves and transformers loads."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from train.errors import BadConfig, SaveFailed
from train.tiny.model import make_model
from train.tiny.recipes import Recipe
from train.tiny.tokenizer import train_tokenizer
from train.tiny.warmstart import warm_start


def _silent(_: str) -> None:
    """Say nothing."""


def build(recipe: Recipe, out: Path, seed: int = 0, say: Callable[[str], None] = _silent) -> Path:
    """Make the recipe's policy and save it as `out`, which appears when it is complete.

    Equal recipes and seeds give equal files on one machine with as many torch threads.

    Raises:
        BadConfig: the recipe cannot be made, `out` has something in it or cannot be made.
        SaveFailed: the folder cannot be written.

    """
    if seed < 0:
        raise BadConfig(f"seed is at least 0, not {seed}")
    recipe.parsed_strategy()
    recipe.make_env()
    tokenizer = train_tokenizer(recipe, seed)
    with ExitStack() as undo:
        part = _part_of(out)
        undo.callback(shutil.rmtree, part, ignore_errors=True)
        model = make_model(tokenizer, seed)
        say(f"{recipe.env}: {model.num_parameters():,} weights, {len(tokenizer)} tokens")
        warm_start(model, tokenizer, recipe, seed=seed, say=say)
        _save(model, tokenizer, part, out)
    say(f"saved as {out}")
    return out


def shortened(recipe: Recipe, steps: int | None) -> Recipe:
    """Return the recipe with another number of steps; None leaves it."""
    return recipe if steps is None else dataclasses.replace(recipe, steps=steps)


def _part_of(out: Path) -> Path:
    """Make the folder beside `out` that becomes it when it is complete."""
    part = out.with_name(f".{out.name}.part")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadConfig(f"{out} is there already: name a new folder, or an empty one")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise BadConfig(f"cannot make {out}: {error}") from error
    return part


def _save(
    model: Any,  # noqa: ANN401 - untyped
    tokenizer: Any,  # noqa: ANN401 - untyped
    part: Path,
    out: Path,
) -> None:
    """Write into `part` and give it its name."""
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.replace(out)
    except OSError as error:
        raise SaveFailed(f"cannot write {out}: {error}") from error
