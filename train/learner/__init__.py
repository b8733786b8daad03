"""How weights change: TRL, torch and what they are given."""

import os

# TRL's asynchronous trainer is experimental: it is pinned, and its two ports are under test.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
