"""The store under the real server: it changes what an answer costs, never what it says."""

import json
import os
import subprocess
import sys
import time

import pytest
import redis
from raw_requests import PATIENCE_SECONDS
from redis_server import RedisServer, needs_redis
from small_disk import needs_mount, small_disk
from store_server import REDIS_TIMEOUT_MS, Served, check_answers, flip_values

from refrag_client import InvalidRequest, Overloaded

pytestmark = pytest.mark.server


def test_empty_warm_half_warm_and_damaged_stores_give_the_same_tokens(repository, tmp_path, contexts, expected):
    with Served(repository, tmp_path, MEMORY_MIB=0) as served:
        half = len(contexts) // 2
        cold = check_answers(served, contexts[:half], expected[:half])
        assert cold[0].num_stored_chunks == 0
        served.wait_for_metric("refrag_store_written", 1, tier="disk", model="expansion_policy")
        served.store.index([passage for context in contexts[:half] for passage in context.passages])

        half_warm = check_answers(served, contexts, expected)
        assert all(figures.num_stored_chunks == figures.num_chunks for figures in half_warm[:half])
        assert not all(figures.num_stored_chunks == figures.num_chunks for figures in half_warm[half:])
        served.store.index([passage for context in contexts for passage in context.passages])
        warm = check_answers(served, contexts, expected)
        assert all(figures.num_stored_chunks == figures.num_chunks > 0 for figures in warm)

        num_damaged = flip_values(tmp_path)
        assert served.wait_for_metric("refrag_store_hits", 1, tier="disk", model="preprocessing", kind="tokens")
        damaged = check_answers(served, contexts, expected)
        assert damaged[0].num_stored_chunks == 0
        assert served.wait_for_metric("refrag_store_corrupted", 1, tier="disk", model="preprocessing") <= num_damaged
        served.store.index([passage for context in contexts for passage in context.passages])
        mended = check_answers(served, contexts, expected)
        assert all(figures.num_stored_chunks == figures.num_chunks for figures in mended)


def test_a_store_cut_off_in_the_middle_of_a_run_costs_no_answer(repository, tmp_path, contexts, expected):
    with Served(repository, tmp_path, MEMORY_MIB=0) as served:
        served.store.index([passage for context in contexts for passage in context.passages])
        os.truncate(next(tmp_path.glob("*/data.mdb")), 20_000)
        check_answers(served, contexts, expected)
        served.wait_for_metric("refrag_store_errors", 1, tier="disk", model="preprocessing")
        served.store.index([passage for context in contexts for passage in context.passages])
        warm = check_answers(served, contexts, expected)
        assert all(figures.num_stored_chunks == figures.num_chunks for figures in warm)


def test_a_full_store_gives_up_the_oldest_and_goes_on(repository, tmp_path, contexts, expected):
    with Served(repository, tmp_path, MEMORY_MIB=0, DISK_MIB=1) as served:
        for number in range(0, 4000, 400):
            served.store.index(
                [f"passage number {n} of many, {n * n} words and {n}" for n in range(number, number + 400)]
            )
        check_answers(served, contexts, expected)
        [tier] = served.store.stats().tiers
        assert tier.num_bytes <= 1.1 * tier.limit_bytes


def test_a_disk_that_takes_nothing_costs_no_answer(repository, contexts, expected):
    """/dev/full has no room for anything; the store's folder cannot even be made there."""
    with Served(repository, "/dev/full/store") as served:
        check_answers(served, contexts, expected)
        served.wait_for_metric("refrag_store_errors", 1, tier="disk", model="preprocessing")


@needs_mount
def test_a_full_disk_costs_no_answer(repository, tmp_path, contexts, expected):
    with small_disk(tmp_path, 192) as folder, Served(repository, folder / "store", MEMORY_MIB=0) as served:
        served.store.index(contexts[0].passages)
        with pytest.raises(Overloaded, match="not every tier"):
            served.store.index([f"passage number {n} of many, {n * n} words and {n}" for n in range(2000)])
        figures = check_answers(served, contexts, expected)
        assert figures[0].num_stored_chunks == figures[0].num_chunks > 0
        assert served.wait_for_metric("refrag_store_dropped", 1, tier="disk", model="chunk_store")


@needs_redis
def test_redis_killed_and_back_costs_no_answer(repository, tmp_path, contexts, expected):
    server = RedisServer(tmp_path)
    try:
        with Served(repository, "off", MEMORY_MIB=0, REDIS_URL=server.url, REDIS_TIMEOUT_MS=REDIS_TIMEOUT_MS) as served:
            served.store.index([passage for context in contexts for passage in context.passages])
            warm = check_answers(served, contexts, expected)
            assert all(figures.num_stored_chunks == figures.num_chunks > 0 for figures in warm)
            server.kill()
            cold = check_answers(served, contexts, expected)
            assert all(figures.num_stored_chunks == 0 for figures in cold)
            server.start()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not check_answers(served, contexts[:1], expected[:1])[0].num_stored_chunks:
                assert time.monotonic() < deadline, "the store is not used again"
    finally:
        server.kill()


@needs_redis
def test_what_one_server_encodes_the_other_finds_and_a_rolling_restart_loses_nothing(
    repository, tmp_path, contexts, expected
):
    server = RedisServer(tmp_path)
    options = {"REDIS_URL": server.url, "REDIS_TIMEOUT_MS": REDIS_TIMEOUT_MS}
    try:
        with Served(repository, tmp_path / "b", **options) as second:
            with Served(repository, tmp_path / "a", **options) as first:
                check_answers(first, contexts, expected)
                first.wait_for_metric("refrag_store_written", 1, tier="shared", model="expansion_policy")
            # The first server is stopped, and has finished its writes.
            shared = check_answers(second, contexts, expected)
            assert all(figures.num_stored_chunks == figures.num_chunks > 0 for figures in shared)
            with Served(repository, tmp_path / "c", **options) as third:
                again = check_answers(third, contexts, expected)
                assert all(figures.num_stored_chunks == figures.num_chunks for figures in again)
    finally:
        server.kill()


@needs_redis
def test_indexing_again_fills_a_tier_that_lost_what_another_has(repository, tmp_path, contexts):
    server = RedisServer(tmp_path)
    try:
        with Served(repository, tmp_path / "disk", REDIS_URL=server.url, REDIS_TIMEOUT_MS=REDIS_TIMEOUT_MS) as served:
            passages = contexts[0].passages
            first = served.store.index(passages)
            with redis.Redis.from_url(server.url) as client:
                client.flushall()
            assert served.store.index(passages).num_encoded == 0
            entries = {tier.name: tier.num_entries for tier in served.store.stats().tiers}
            # The passages' tokens, which the disk has too, are made anew by whoever lacks them.
            assert entries == {"disk": first.num_encoded + len(set(passages)), "shared": first.num_encoded}
    finally:
        server.kill()


def test_what_the_store_is_asked_wrongly_it_tells(repository, tmp_path, contexts):
    with Served(repository, tmp_path) as served:
        assert served.store.index([]).num_chunks == 0
        for problem, ask in {
            "tier is 'shared'; this server has disk": lambda: list(served.store.verify("shared")),
            "32 hexadecimal digits": lambda: list(served.store.prune("disk", ["nonsense"])),
            "allowed: index, cut, encode, stats": lambda: served.store._ask("forget"),
        }.items():
            with pytest.raises(InvalidRequest, match=problem):
                ask()


def run_refrag(served, *arguments):
    command = [
        sys.executable,
        "-m",
        "refrag_client.cli.main",
        *map(str, arguments),
        "--url",
        served.server.grpc_address,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_corpus_is_indexed_once_and_only_its_changes_again(repository, tmp_path, contexts, expected):
    corpus = tmp_path / "corpus.jsonl"
    passages = sorted({passage for context in contexts for passage in context.passages})
    corpus.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    with Served(repository, tmp_path / "store") as served:
        first = run_refrag(served, "index", corpus, "--json", "--batch-bytes", "2000")
        assert first["num_passages"] == len(passages)
        assert 0 < first["num_encoded"] <= first["num_chunks"]
        warm = check_answers(served, contexts, expected)
        assert all(figures.num_stored_chunks == figures.num_chunks for figures in warm)

        assert run_refrag(served, "index", corpus, "--json")["num_passages"] == 0
        again = run_refrag(served, "index", corpus, "--json", "--fresh")
        assert (again["num_passages"], again["num_encoded"]) == (len(passages), 0)

        changed = [passages[0] + " And one sentence more.", *passages[1:]]
        corpus.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in changed))
        update = run_refrag(served, "index", corpus, "--json")
        assert update["num_passages"] == len(passages)
        assert 0 < update["num_encoded"] <= 2


def test_a_store_is_verified_filled_anew_and_pruned(repository, tmp_path, contexts, expected):
    passages = [passage for context in contexts for passage in context.passages]
    with Served(repository, tmp_path / "store", MEMORY_MIB=0) as served:
        report = served.store.index(passages)
        num_damaged = flip_values(tmp_path / "store")
        assert num_damaged == report.num_encoded + len(set(passages))
        assert run_refrag(served, "store", "verify") == {
            "disk": {"num_checked": num_damaged, "num_deleted": num_damaged}
        }
        assert served.store.index(passages).num_encoded == report.num_encoded
        warm = check_answers(served, contexts, expected)
        assert all(figures.num_stored_chunks == figures.num_chunks for figures in warm)
        assert served.store.index(passages).num_encoded == 0
        assert run_refrag(served, "store", "prune")["disk"]["num_deleted"] == 0
        [tier] = run_refrag(served, "store", "stats")["tiers"]
        assert (tier["name"], tier["num_entries"], tier["error"]) == ("disk", num_damaged, None)
