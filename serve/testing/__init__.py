"""An OpenAI-compatible engine with no model in it, for users' tests, for ours, and for benchmarks.

Its replies are a pure function of a request's seed and messages, and its faults come by count,
so a test that uses it sees the same thing every time.
"""

from serve.testing.answers import Reply
from serve.testing.fake import FakeEngine
from serve.testing.faults import Faults

__all__ = ["FakeEngine", "Faults", "Reply"]
