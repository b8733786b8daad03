"""`python -m evalkit` and the console script `evalkit`."""

import sys
from pathlib import Path


def main() -> int:
    """Run the command line; envs in the working directory can be named by their module."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    from evalkit.cli import main as run  # noqa: PLC0415 - after the path is set

    return run()


if __name__ == "__main__":
    sys.exit(main())
