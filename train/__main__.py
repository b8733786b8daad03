"""`python -m train`."""

import sys
from pathlib import Path


def main() -> int:
    """Run the command line; envs and rewards in the working directory can be named by module."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    from train.cli import main as run  # noqa: PLC0415  # after the path is set

    return run()


if __name__ == "__main__":
    sys.exit(main())
