from serve.testing.prefix_cache import PrefixCache

IDS = list(range(100))


def test_whole_blocks_are_known_the_second_time_but_never_the_last_token() -> None:
    cache = PrefixCache(blocks=10)
    hits = []
    for size in (15, 16, 17, 32, 48, 49):
        hits.append(cache.query(IDS[:size], b""))
        cache.keep(IDS[:size], b"")
    assert hits == [0, 0, 16, 16, 32, 48]
    assert (cache.queried_tokens, cache.hit_tokens) == (177, 112)


def test_a_prefix_is_known_by_all_before_it_and_by_its_salt() -> None:
    cache = PrefixCache(blocks=10)
    cache.keep(IDS[:48], b"")
    assert cache.query(IDS[16:48], b"") == 0
    assert cache.query(IDS[:40], b"salt") == 0
    assert cache.query([*IDS[:16], 7, *IDS[17:48]], b"") == 16


def test_the_least_used_go_first_from_their_end_on() -> None:
    cache = PrefixCache(blocks=4)
    cache.keep(IDS[:32], b"a")
    cache.keep(IDS[:48], b"b")
    assert cache.query(IDS[:40], b"a") == 16
    assert cache.query(IDS[:64], b"b") == 48
    cache.reset()
    assert cache.query(IDS[:64], b"b") == 0
