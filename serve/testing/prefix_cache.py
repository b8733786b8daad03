"""A model of vLLM's prefix cache: which tokens of a prompt would not have to be computed. Pure."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import takewhile


class PrefixCache:
    """Whole blocks of tokens, each known by all that comes before it; the least used go first."""

    def __init__(self, *, blocks: int, block_size: int = 16) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def query(self, ids: Sequence[int], salt: bytes) -> int:
        """Return how many of the first tokens are known, and count that; the last one never is."""
        hits = list(takewhile(self._known.__contains__, self._keys(ids[:-1], salt)))
        self._use(hits)
        self.queried_tokens += len(ids)
        self.hit_tokens += len(hits) * self.block_size
        return len(hits) * self.block_size

    def keep(self, ids: Sequence[int], salt: bytes) -> None:
        """Remember the blocks of a prompt and what was made for it."""
        self._use(self._keys(ids, salt))
        while len(self._known) > self.blocks:
            self._known.popitem(last=False)

    def reset(self) -> None:
        """Forget all of them."""
        self._known.clear()

    def blocks_for(self, tokens: int) -> int:
        """Return how many blocks so many tokens take."""
        return -(-tokens // self.block_size)

    def _use(self, keys: list[bytes]) -> None:
        """Note that these are in use; the end of a prompt is to be forgotten before its start."""
        for key in reversed(keys):
            self._known[key] = None
            self._known.move_to_end(key)

    def _keys(self, ids: Sequence[int], salt: bytes) -> list[bytes]:
        """Name the whole blocks of `ids`, each by a digest of itself and of those before it."""
        key, keys = salt, []
        size = self.block_size
        for start in range(0, len(ids) - size + 1, size):
            block = b",".join(b"%d" % token_id for token_id in ids[start : start + size])
            key = blake2b(key + block, digest_size=16).digest()
            keys.append(key)
        return keys
