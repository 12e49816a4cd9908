"""Filling and maintaining the store: work noted as done is done, and no work is asked for twice."""

import json
import threading

import fake_triton_service as service
import numpy as np
import pytest

from refrag_client import InvalidRequest, StoreClient
from refrag_client.cli import in_order
from refrag_client.cli.main import main

FINGERPRINT = "ab" * 16


class FakeStore:
    """Keeps passages as if each were one chunk; fails as often as it is told to."""

    def __init__(self):
        self.passages, self.num_calls, self.num_failures, self.fingerprint = [], 0, 0, FINGERPRINT
        self.asked = []

    def __call__(self, operation, inputs):
        self.asked.append((operation, {name: value.tolist() for name, value in inputs.items()}))
        return getattr(self, operation)(inputs)

    def stats(self, inputs):
        tier = {"name": "disk", "num_entries": 3, "num_bytes": 400, "limit_bytes": None, "error": None}
        return {"fingerprint": self.fingerprint, "chunk_size": 16, "tiers": [tier]}, {}

    def index(self, inputs):
        self.num_calls += 1
        if self.num_failures:
            self.num_failures -= 1
            raise service.StoreError("Overloaded", "the store is full")
        passages = [value.decode() for value in inputs["passages"]]
        new = [passage for passage in passages if passage not in self.passages]
        self.passages += new
        counts = {"num_chunks": len(passages), "num_tokens": 10, "num_encoded": len(new), "num_bytes": 8 * len(new)}
        return {"fingerprint": self.fingerprint, **counts}, {}

    def verify(self, inputs):
        """Yield two pages."""
        is_last = "cursor" in inputs
        cursor = np.zeros(0, np.uint8) if is_last else np.array([7], np.uint8)
        return {"num_checked": 10, "num_deleted": int(is_last)}, {"next_cursor": cursor}

    prune = verify


@pytest.fixture(autouse=True)
def store(fake):
    fake.store = FakeStore()
    return fake.store


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"passage {number}"}) + "\n" for number in range(50)))
    return path


def index_json(run, corpus, *options):
    code, out, err = run("index", corpus, "--json", "--batch-bytes", 100, *options)
    assert code == 0, err
    return json.loads(out)


def test_a_corpus_is_sent_once_in_order_of_its_lines(run, store, corpus):
    report = index_json(run, corpus)
    assert sorted(store.passages) == sorted(f"passage {number}" for number in range(50))
    assert (report["num_passages"], report["num_encoded"], report["num_bytes"]) == (50, 50, 400)
    assert store.num_calls == 10


def test_a_second_run_has_nothing_to_do_and_new_lines_are_added(run, store, corpus):
    index_json(run, corpus)
    assert index_json(run, corpus)["num_passages"] == 0
    with corpus.open("a") as file:
        file.write('"one more"\n')
    assert index_json(run, corpus)["num_passages"] == 1
    assert store.passages[-1] == "one more"


def test_a_run_that_failed_goes_on_where_it_was(run, store, corpus):
    lines = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join(lines[:30]) + "no JSON\n" + "".join(lines[30:]))
    code, _, err = run("index", corpus, "--batch-bytes", 100)
    assert code == 2 and "line 31: not JSON" in err
    assert len(store.passages) == 30
    corpus.write_text("".join(lines))
    assert index_json(run, corpus)["num_passages"] == 20
    assert len(store.passages) == 50


@pytest.mark.parametrize("change", ["corpus", "encoder", "fresh"])
def test_what_has_changed_is_gone_through_again(run, store, corpus, change):
    index_json(run, corpus)
    if change == "corpus":
        corpus.write_text(corpus.read_text().replace("passage 0", "another 0"))
    elif change == "encoder":
        store.fingerprint = "cd" * 16
    options = ["--fresh"] if change == "fresh" else []
    report = index_json(run, corpus, *options)
    assert (report["num_passages"], report["num_encoded"]) == (50, int(change == "corpus"))


def test_a_file_of_the_users_beside_the_corpus_is_left_alone(run, corpus):
    other = corpus.with_name("corpus.jsonl.new")
    other.write_text("tomorrow's corpus")
    index_json(run, corpus)
    assert other.read_text() == "tomorrow's corpus"


def test_a_corpus_beside_which_nothing_can_be_written_is_indexed(run, store, corpus):
    corpus.with_name("corpus.jsonl.indexed").mkdir()
    code, _, err = run("index", corpus, "--batch-bytes", 100)
    assert code == 0 and len(store.passages) == 50
    assert err.count("nothing is noted beside") == 1


def test_a_store_that_is_full_for_a_moment_is_asked_again(run, store, corpus, monkeypatch):
    monkeypatch.setattr(in_order, "FIRST_PAUSE_SECONDS", 0.01)
    store.num_failures = 3
    assert index_json(run, corpus)["num_encoded"] == 50


def test_a_store_that_stays_full_fails_with_what_it_said(run, store, corpus, monkeypatch):
    monkeypatch.setattr(in_order, "FIRST_PAUSE_SECONDS", 0.001)
    store.num_failures = 1000
    code, _, err = run("index", corpus)
    assert code == 1 and "the store is full" in err


@pytest.mark.parametrize("options", [(), ("--collection", "c")])
def test_control_c_waits_for_no_running_request(run, fake, store, corpus, options):
    has_ended = threading.Event()

    def index_when_released(inputs):
        service.interrupt_the_main_thread()
        try:
            fake.wait_for_release()
        finally:
            has_ended.set()
        return FakeStore.index(store, inputs)

    store.index = index_when_released
    assert run("index", corpus, "--in-flight", 1, *options)[0] == 130
    assert not has_ended.is_set()
    fake.release()


def test_control_c_ends_the_attempts_at_a_busy_store(run, store, corpus, monkeypatch):
    # The interrupt ends the pause.
    monkeypatch.setattr(in_order, "FIRST_PAUSE_SECONDS", service.WAIT_SECONDS)

    def refuse(inputs):
        store.num_calls += 1
        if store.num_calls == 1:
            service.interrupt_the_main_thread()
        raise service.StoreError("Overloaded", "the store is full")

    store.index = refuse
    assert run("index", corpus, "--in-flight", 1)[0] == 130
    assert store.num_calls == 1


def test_whoever_leaves_results_in_order_hangs_up_on_what_is_running():
    has_hung_up = threading.Event()

    def call(batch):
        assert batch == "a" or has_hung_up.wait(service.WAIT_SECONDS)
        return batch.upper()

    results = in_order.call_in_order(iter("abc"), call, 1, has_hung_up.set)
    assert next(results) == ("a", "A")
    results.close()
    assert has_hung_up.is_set()


def test_a_corpus_that_is_not_there_is_named(run, tmp_path):
    code, _, err = run("index", tmp_path / "none.jsonl")
    assert code == 2 and "none.jsonl is no file to read (No such file or directory)" in err


def test_the_summary_is_for_people(run, corpus):
    code, out, _ = run("index", corpus)
    assert code == 0
    assert out.startswith("50 passages, 50 chunks of 10 tokens; 50 vectors encoded and stored, 400 bytes")


def test_pages_are_asked_for_until_the_last(run, store):
    code, out, _ = run("store", "verify")
    assert (code, json.loads(out)) == (0, {"disk": {"num_checked": 20, "num_deleted": 1}})
    assert [inputs.get("cursor") for operation, inputs in store.asked if operation == "verify"] == [None, [7]]


def test_prune_tells_whom_to_keep(run, store):
    assert run("store", "prune", "--keep", FINGERPRINT)[0] == 0
    assert store.asked[1][1]["keep"] == [FINGERPRINT.encode()]


def test_stats_are_one_json_object(run):
    code, out, _ = run("store", "stats")
    assert code == 0 and json.loads(out)["tiers"][0]["num_entries"] == 3


def test_a_tier_that_is_not_there_is_named(run):
    code, _, err = run("store", "verify", "--tier", "shared")
    assert code == 2 and "no tier shared" in err


def test_errors_of_the_store_are_typed(url, fake):
    def refuse(operation, inputs):
        raise service.StoreError("InvalidRequest", "this server has none that lasts")

    fake.store = refuse
    with StoreClient(url) as client, pytest.raises(InvalidRequest, match="none that lasts"):
        client.index(["passage"])


def test_a_server_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["store", "stats", "--url", "127.0.0.1:1"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_nothing_to_index_is_nothing_indexed(url, store):
    with StoreClient(url) as client:
        assert client.index([]).num_chunks == 0
