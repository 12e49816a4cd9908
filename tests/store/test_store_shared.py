"""Redis, a real one."""

import pytest
from redis_server import needs_redis
from store_helpers import FINGERPRINT, OTHER, digest

from refrag.errors import InvalidRequest
from refrag.store.tiers.shared import SharedTier
from refrag.store.tiers.tier import TierError

pytestmark = needs_redis


def items(numbers, owner=FINGERPRINT):
    return {owner + digest(number): f"value {number}".encode() for number in numbers}


@pytest.fixture
def tier(redis_server):
    tier = SharedTier(redis_server.url, timeout_seconds=5.0)
    yield tier
    tier.close()


def test_what_was_put_is_got_by_another_client(redis_server, tier):
    tier.put(items(range(5000)))
    other = SharedTier(redis_server.url, timeout_seconds=5.0)
    assert other.get(list(items([4999, 5000]))) == [b"value 4999", None]
    assert other.usage().num_entries == 5000
    other.close()


def test_nothing_asked_is_nothing_sent(tier):
    assert tier.get([]) == []
    tier.put({})
    tier.delete([])


def test_a_scan_tells_everything(tier):
    stored = {**items(range(500)), **items(range(40), owner=OTHER)}
    tier.put(stored)
    found, cursor, is_first = {}, b"", True
    while is_first or cursor:
        page, cursor = tier.scan(cursor, 100)
        found.update(page)
        is_first = False
    assert found == stored


@pytest.mark.parametrize("cursor", [b"abc", b"-1", b"1.5", b"18446744073709551616", b"9" * 5000, b"\xff" * 48])
def test_a_cursor_that_is_not_redis_own_is_refused(tier, cursor):
    with pytest.raises(InvalidRequest, match="which the shared tier has never returned; send the one that the op"):
        tier.scan(cursor, 100)


def test_what_was_deleted_is_gone(tier):
    tier.put(items(range(3)))
    tier.delete(list(items([1])))
    assert [value is None for value in tier.get(list(items(range(3))))] == [False, True, False]


def test_marks_of_live_fingerprints(tier):
    tier.mark_live(FINGERPRINT, now=0.0, seconds=60.0)
    assert tier.live(now=0.0) == {FINGERPRINT}


def test_a_server_that_is_killed_is_an_error_and_one_that_comes_back_is_used(redis_server, tier):
    tier.put(items([1]))
    redis_server.kill()
    with pytest.raises(TierError, match=str(redis_server.port)):
        tier.get(list(items([1])))
    redis_server.start()
    assert tier.get(list(items([1]))) == [None]


def test_a_full_server_is_an_error(redis_server, tier):
    tier._redis.config_set("maxmemory", "1mb")
    with pytest.raises(TierError, match="memory"):
        tier.put({key: value * 1000 for key, value in items(range(3000)).items()})
