"""The config that tests of a deployment start from."""

from pathlib import Path

SHIPPED = Path("serve/configs").resolve()
BASE = SHIPPED / "modal.yaml"
ALL = tuple(sorted(SHIPPED.glob("modal*.yaml")))
