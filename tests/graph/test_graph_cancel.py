"""The end of a request before its answer is complete: by its caller, by its deadline, by a killed client."""

import re
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton
from raw_requests import PATIENCE_SECONDS

from refrag_client import Cancelled, DeadlineExceeded, InvalidRequest, RefragClient

pytestmark = pytest.mark.server

QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot."]
# At this temperature no end token is likely: the answer goes on until somebody ends it.
ENDLESS = {"max_tokens": 4000, "temperature": 50.0, "seed": 1}
NUM_OTHERS = 12
# The first that a busy machine's first piece does not miss is the one to test with.
DEADLINES_MS = (3_000, 8_000, 30_000)


@pytest.fixture
def busy_decoder(server):
    """Run other streams, so that a decoding step takes much longer than a message."""
    with RefragClient(server.grpc_address, timeout_seconds=PATIENCE_SECONDS) as client:
        streams = [client.stream(QUESTION, PASSAGES, **ENDLESS) for _ in range(NUM_OTHERS)]
        for stream in streams:
            next(stream)
        yield
        for stream in streams:
            stream.cancel()


def send_stop(server, request_id):
    """Ask the decoder to end a request, and wait for its word that it heard."""
    heard = threading.Event()
    with triton.InferenceServerClient(server.grpc_address) as raw:
        stop = triton.InferInput("stop", [1], "BOOL")
        stop.set_data_from_numpy(np.array([True]))
        raw.start_stream(lambda result, error: heard.set())
        raw.async_stream_infer("decoder", [stop], request_id=request_id, enable_empty_final_response=True)
        assert heard.wait(PATIENCE_SECONDS)
        raw.stop_stream()


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)


def count_generated_tokens(server):
    return read_counter(server, "refrag_generated_tokens")


def read_counter(server, name):
    """Return the decoder's own count, from Triton's metrics."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as response:
        (value,) = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", response.read().decode(), re.MULTILINE)
    return float(value)


def wait_until_free(client, request_id, seconds):
    """Return the seconds until the id is no longer in flight."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            client.generate(QUESTION, PASSAGES, max_tokens=1, request_id=request_id)
            return time.monotonic() - started
        except InvalidRequest as error:
            assert "in flight already" in str(error)
    pytest.fail(f"request {request_id} still runs after {seconds} seconds")


def test_a_stopped_stream_gets_at_most_two_more_tokens(client, server, busy_decoder):
    stream = client.stream(QUESTION, PASSAGES, request_id="stop-me", **ENDLESS)
    received, ended = [], threading.Event()

    def read():
        with pytest.raises(Cancelled):
            for piece in stream:
                received.append(piece)
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    wait_until(lambda: len(received) >= 3, seconds=PATIENCE_SECONDS)
    send_stop(server, "stop-me")
    num_received, count_at_stop = len(received), count_generated_tokens(server)
    assert ended.wait(PATIENCE_SECONDS)
    # The reader may lag behind, so that some of these are from before the stop. The server's count tells how many are
    # not: it grows once a step, by a token of each running stream, and what the others cannot have got, this one has.
    assert len(received) - num_received < NUM_OTHERS
    assert (count_generated_tokens(server) - count_at_stop) % NUM_OTHERS <= 2
    assert len(received) < ENDLESS["max_tokens"]


def test_leaving_a_stream_stops_the_decoder_within_two_tokens(client, server):
    with client.stream(QUESTION, PASSAGES, request_id="left", **ENDLESS) as stream:
        next(stream)
    count_at_exit = count_generated_tokens(server)
    wait_until_free(client, "left", seconds=PATIENCE_SECONDS)
    assert count_generated_tokens(server) - count_at_exit <= 2 + 1  # and one token of the request that took the id
    assert count_at_exit > 0


def test_tokens_of_an_answer_that_was_left_are_counted_as_unread(client, server):
    before = read_counter(server, "refrag_unread_tokens")
    with client.stream(QUESTION, PASSAGES, request_id="unread", **ENDLESS) as stream:
        next(stream)
    wait_until_free(client, "unread", seconds=PATIENCE_SECONDS)
    wait_until(lambda: read_counter(server, "refrag_unread_tokens") > before, seconds=PATIENCE_SECONDS)


def test_a_deadline_ends_the_answer(client):
    with pytest.raises(DeadlineExceeded, match="deadline"):
        client.generate(QUESTION, PASSAGES, deadline_ms=150, **ENDLESS)


def test_a_client_that_is_killed_is_stopped_by_its_deadline(client, server):
    before = read_counter(server, "refrag_unread_tokens")
    script = (
        "from refrag_client import DeadlineExceeded, RefragClient\n"
        f"client = RefragClient({server.grpc_address!r})\n"
        f"for deadline_ms in {DEADLINES_MS!r}:\n"
        f"    options = {{'request_id': 'killed', 'deadline_ms': deadline_ms, **{ENDLESS!r}}}\n"
        f"    stream = client.stream({QUESTION!r}, {PASSAGES!r}, **options)\n"
        "    try: next(stream)\n"
        "    except DeadlineExceeded: continue\n"
        "    print('running', flush=True)\n"
        "    for piece in stream: pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "running\n"
        process.kill()
    wait_until_free(client, "killed", seconds=PATIENCE_SECONDS)
    # It has not come to its end.
    wait_until(lambda: read_counter(server, "refrag_unread_tokens") > before, seconds=PATIENCE_SECONDS)


def test_neighbours_of_a_stopped_stream_are_undisturbed(client, heldout):
    context = heldout[3]
    options = {"max_tokens": 60, "temperature": 5.0, "seed": 9}
    alone = client.generate(context.questions[0].text, context.passages, **options).token_ids
    with client.stream(QUESTION, PASSAGES, **ENDLESS) as doomed:
        next(doomed)
        neighbour = client.stream(context.questions[0].text, context.passages, **options)
        next(neighbour)
    for _ in neighbour:
        pass
    assert neighbour.answer.token_ids == alone
