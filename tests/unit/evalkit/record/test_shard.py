"""How a run is divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import BadConfig
from evalkit.record.shard import Shard


@pytest.mark.parametrize("text", ["1/1", "2/8", "8/8", "10000/10000"])
def test_a_shard_is_read_as_it_is_written(text: str) -> None:
    assert str(Shard.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "2", "0/8", "9/8", "-1/8", "2/0", "a/b", "2/8/3", "1/10001", "2 / 8", "٢/٨"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadConfig, match="a shard is INDEX/COUNT, as in 1/8 to 8/8"):
        Shard.parse(text)


def test_seeds_are_dealt_out_like_cards_in_their_order() -> None:
    seeds = (7, 3, 9, 1, 5)
    dealt = [shard.of(seeds) for shard in Shard.all(2, seeds)]
    assert dealt == [(7, 9, 5), (3, 1)]


@given(st.sets(st.integers(0, 10**9), min_size=1, max_size=60), st.data())
def test_every_seed_is_in_one_shard_and_shards_differ_by_one(
    seeds: set[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(seeds)))
    order = tuple(seeds)
    dealt = [shard.of(order) for shard in Shard.all(count, order)]
    assert sorted(seed for part in dealt for seed in part) == sorted(seeds)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("count", [0, 4, -1])
def test_more_shards_than_seeds_are_refused(count: int) -> None:
    with pytest.raises(BadConfig, match=f"3 env seeds make 1 to 3 shards, not {count}"):
        Shard.all(count, (1, 2, 3))


def test_folders_tell_shards_apart() -> None:
    assert Shard(index=2, count=8).folder == "2-of-8"
