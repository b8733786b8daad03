"""`python -m train.tiny NAME --out DIR`: make a tiny policy that plays a game in part."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from train.errors import TrainError, UsageError
from train.tiny.recipes import RECIPES, recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the policy; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.tiny", description=__doc__)
    parser.add_argument("name", help=f"the recipe: {', '.join(RECIPES)}")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--steps", type=int, help="of the warm start, instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    asked = parser.parse_args(arguments)
    try:
        chosen = recipe(asked.name)
        # heavy: not for --help, nor for a name that is not known
        import torch  # noqa: PLC0415
        from transformers.utils import logging  # noqa: PLC0415

        from train.tiny.build import build, shortened  # noqa: PLC0415

        logging.disable_progress_bar()
        torch.set_num_threads(max(1, asked.threads))
        build(shortened(chosen, asked.steps), asked.out, asked.seed, print)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
