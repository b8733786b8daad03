"""Play episodes against any OpenAI-compatible URL, record them, judge them, show them.

    import evalkit

    run = evalkit.evaluate("http://127.0.0.1:8000", "key_door", strategy="SCRATCHPAD")
    print(run.verdicts, run.summary)
    print(evalkit.compare("results/a", "results/b").verdicts)

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalkit.compared import compare
    from evalkit.config import RunConfig
    from evalkit.play.policy import Ask, Completion, Policy
    from evalkit.run import Run, evaluate, evaluate_async, resume, start

_HOME = {
    "Ask": "evalkit.play.policy",
    "Completion": "evalkit.play.policy",
    "Policy": "evalkit.play.policy",
    "Run": "evalkit.run",
    "RunConfig": "evalkit.config",
    "compare": "evalkit.compared",
    "evaluate": "evalkit.run",
    "evaluate_async": "evalkit.run",
    "resume": "evalkit.run",
    "start": "evalkit.run",
}

__all__ = [
    "Ask",
    "Completion",
    "Policy",
    "Run",
    "RunConfig",
    "compare",
    "evaluate",
    "evaluate_async",
    "resume",
    "start",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
