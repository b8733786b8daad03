"""How new weights reach the gateway, and go live only as the trainer means them."""

import os

# TRL's asynchronous trainer is experimental: it is pinned, and its two ports are under test.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
