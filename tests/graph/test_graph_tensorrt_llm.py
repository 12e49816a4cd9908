"""The ensemble `refrag_trtllm` on a real server, over a stand-in that has exactly the tensors of NVIDIA's backend."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from engine_folder import STAND_IN, make_engine
from raw_requests import PATIENCE_SECONDS, SERVER_OPTIONS, as_bytes, raw_request

import refrag.embedded.runtime
from refrag.embedded import EmbeddedServer
from refrag.export.repository import export_repository
from refrag.request import ExpansionOptions, Request, SamplingParams
from refrag_client import Cancelled, DeadlineExceeded, InvalidRequest, RefragClient

pytestmark = pytest.mark.server

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "world"
MAX_TOKENS = 12
QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot."]
# At this temperature no end token is likely: the answer goes on until somebody ends it.
ENDLESS = {"max_tokens": 4000, "temperature": 50.0, "seed": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorrt_llm")
    export_repository(CHECKPOINT, folder / "repository", engine=make_engine(CHECKPOINT, folder / "engine"))
    backends = folder / "backends"
    backends.mkdir()
    for backend in (refrag.embedded.runtime.OWN_BACKENDS / "onnxruntime", STAND_IN / "tensorrtllm"):
        (backends / backend.name).symlink_to(backend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refrag.embedded.runtime, "OWN_BACKENDS", backends)
        with EmbeddedServer(folder / "repository", **SERVER_OPTIONS, probe_seconds=0) as running:
            yield running


@pytest.fixture(scope="module")
def client(server):
    with open_client(server) as client:
        yield client


def open_client(server, model="refrag_trtllm"):
    return RefragClient(
        server.grpc_address, model=model, decoder_model="postprocessing", timeout_seconds=PATIENCE_SECONDS
    )


@pytest.mark.parametrize("expand_fraction", [0, 0.1, 1])
def test_its_answers_are_those_of_the_torch_decoder_token_for_token(client, reference, heldout, expand_fraction):
    for context in heldout[::3]:
        question = context.questions[0].text
        request = Request(question, context.passages, ExpansionOptions(expand_fraction))
        expected = reference.answer(request, SamplingParams(MAX_TOKENS))
        served = client.generate(question, context.passages, expand_fraction=expand_fraction, max_tokens=MAX_TOKENS)
        assert list(served.token_ids) == expected.token_ids
        assert (served.text, served.finish_reason) == (expected.text, expected.finish_reason)
        assert list(served.statistics.expanded_chunks) == expected.expanded
        assert served.statistics.prompt_slots == expected.prompt.num_slots


def test_sixteen_callers_get_their_tokens_in_order_and_as_alone(client, heldout):
    def ask(index):
        context = heldout[index]
        options = {"expand_fraction": [0, 0.1, 0.5, 1][index % 4], "temperature": 0.7, "seed": index}
        stream = client.stream(context.questions[0].text, context.passages, max_tokens=40, **options)
        pieces = list(stream)
        assert [piece.index for piece in pieces] == list(range(len(pieces)))
        return "".join(piece.text for piece in pieces), stream.answer.text, stream.answer.token_ids

    alone = [ask(index) for index in range(16)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == alone
    assert all(joined == whole for joined, whole, _ in alone)


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_word_across_token_borders_ends_the_answer_before_it(client, reference, stream):
    sampling = {"temperature": 2.0, "seed": 1}
    request = Request(QUESTION, PASSAGES)
    whole = reference.answer(request, SamplingParams(MAX_TOKENS, **sampling))
    # It begins within one token and ends within another.
    pieces = [reference.checkpoint.decoder_tokenizer.decode([token]) for token in whole.token_ids]
    start = len(pieces[0]) + len(pieces[1]) - 1
    word = whole.text[start : start + 3]
    expected = reference.answer(request, SamplingParams(MAX_TOKENS, stop_words=(word,), **sampling))
    served = client.generate(QUESTION, PASSAGES, stop_words=[word], max_tokens=MAX_TOKENS, stream=stream, **sampling)
    assert (served.text, list(served.token_ids)) == (expected.text, expected.token_ids)
    assert word not in served.text
    assert served.finish_reason == "stop"


def test_a_stop_word_stops_the_engine_long_before_its_tokens_are_spent(client, server):
    first = next(iter(client.stream(QUESTION, PASSAGES, **ENDLESS)))
    assert first.text
    options = {**ENDLESS, "stop_words": [first.text[:1]], "request_id": "stopped-by-word"}
    assert client.generate(QUESTION, PASSAGES, **options).finish_reason == "stop"
    wait_until_free(client, "stopped-by-word")


def test_a_stop_on_its_way_to_the_engine_spares_the_next_request_with_the_id(client):
    first = next(iter(client.stream(QUESTION, PASSAGES, **ENDLESS)))
    for _ in range(10):
        options = {**ENDLESS, "stop_words": [first.text[:1]], "request_id": "again and again"}
        assert client.generate(QUESTION, PASSAGES, **options).finish_reason == "stop"
        following = wait_until_free(client, "again and again", **{**ENDLESS, "max_tokens": 40})
        assert (len(following.token_ids), following.finish_reason) == (40, "length")


def test_sampling_and_log_probabilities_arrive_as_from_the_torch_decoder(client, reference):
    options = {"temperature": 1.5, "top_k": 50, "top_p": 0.95, "seed": 2**63 + 11, "min_tokens": 4}
    expected = reference.answer(Request(QUESTION, PASSAGES), SamplingParams(MAX_TOKENS, **options))
    assert list(client.generate(QUESTION, PASSAGES, max_tokens=MAX_TOKENS, **options).token_ids) == expected.token_ids
    whole = client.generate(QUESTION, PASSAGES, max_tokens=MAX_TOKENS, log_probs=True)
    assert len(whole.log_probs) == len(whole.token_ids) > 0
    assert all(value <= 0 for value in whole.log_probs)
    assert not client.generate(QUESTION, PASSAGES, max_tokens=MAX_TOKENS).log_probs


def test_an_unstreamed_answer_equals_the_streamed_one(client, heldout):
    question, passages = heldout[5].questions[0].text, heldout[5].passages
    options = {"max_tokens": MAX_TOKENS, "temperature": 1.2, "seed": 3}
    streamed = client.generate(question, passages, **options)
    whole = client.generate(question, passages, stream=False, **options)
    assert (whole.text, whole.token_ids) == (streamed.text, streamed.token_ids)


def test_a_caller_who_leaves_stops_the_engine(client):
    with client.stream(QUESTION, PASSAGES, request_id="left", **ENDLESS) as stream:
        next(stream)
    wait_until_free(client, "left")


def test_a_stopped_stream_ends_as_cancelled(client, server):
    stream = client.stream(QUESTION, PASSAGES, request_id="stop-me", **ENDLESS)
    next(stream)
    ended = threading.Event()

    def read():
        with pytest.raises(Cancelled, match="'stop-me' was stopped by its caller"):
            for _ in stream:
                pass
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    raw_request(server, {"stop": stop_tensor()}, model="postprocessing", request_id="stop-me")
    assert ended.wait(PATIENCE_SECONDS)


def test_a_caller_who_vanishes_is_noticed_through_the_model_in_front(server, client):
    with open_client(server, model="refrag_watched") as watched:
        assert watched.generate(QUESTION, PASSAGES, max_tokens=3).token_ids
        for _ in range(3):
            # Its client and the model in front both send a stop; none may end the next request with the id.
            with watched.stream(QUESTION, PASSAGES, request_id="vanished", **ENDLESS) as stream:
                next(stream)
            wait_until_free(client, "vanished")


def test_an_error_that_comes_after_pieces_passes_the_model_in_front(server):
    with open_client(server, model="refrag_watched") as watched:
        stream = watched.stream(QUESTION, PASSAGES, request_id="stopped in between", **ENDLESS)
        assert next(stream).token_ids
        raw_request(server, {"stop": stop_tensor()}, model="postprocessing", request_id="stopped in between")
        with pytest.raises(Cancelled, match="was stopped by its caller"):
            list(stream)


def test_a_stop_for_another_caller_ends_nothing(server, client):
    with client.stream(QUESTION, PASSAGES, request_id="kept", **ENDLESS) as stream:
        next(stream)
        for request_id in ("kept", "to come"):
            stop = {"stop": stop_tensor()}
            assert not raw_request(server, stop, model="postprocessing", request_id=request_id, sequence_id=7)
        assert all(next(stream).token_ids for _ in range(200))
    assert client.generate(QUESTION, PASSAGES, request_id="to come", max_tokens=2).token_ids


def test_a_deadline_ends_the_answer(client):
    with pytest.raises(DeadlineExceeded, match="deadline of request"):
        client.generate(QUESTION, PASSAGES, deadline_ms=300, **ENDLESS)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"priority": 1}, "priority is 1; TensorRT-LLM's Triton backend knows none"),
        ({"log_probs": True, "temperature": 0.5}, "log_probs is true with temperature"),
        ({"max_tokens": 100_000}, "the decoder's window is"),
        ({"top_p": 2.0}, "top_p is 2.0"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(client, options, named):
    with pytest.raises(InvalidRequest, match=named):
        client.generate(QUESTION, PASSAGES, **options)


def test_a_request_without_an_id_is_told_to_send_one(server):
    [error] = raw_request(server, {"text_input": as_bytes(QUESTION.encode())}, model="refrag_trtllm")
    assert "the request has no id" in error


def test_an_id_in_flight_is_refused_and_its_owner_is_not_disturbed(client):
    with client.stream(QUESTION, PASSAGES, request_id="mine", **ENDLESS) as stream:
        next(stream)
        with pytest.raises(InvalidRequest, match="'mine' is in flight already"):
            client.generate(QUESTION, PASSAGES, request_id="mine")
        assert next(stream).token_ids


def test_a_refused_request_leaves_its_id_free(client):
    with pytest.raises(InvalidRequest):
        client.generate(QUESTION, PASSAGES, request_id="again", priority=1)
    assert client.generate(QUESTION, PASSAGES, request_id="again", max_tokens=2).token_ids


def stop_tensor():
    return np.array([True]), "BOOL"


def wait_until_free(client, request_id, **options):
    """Return the next answer with the id, once the engine has given it up; it had thousands of tokens to go."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            return client.generate(QUESTION, PASSAGES, request_id=request_id, **{"max_tokens": 1, **options})
        except InvalidRequest as error:
            assert "in flight already" in str(error)
    pytest.fail(f"request {request_id} still runs")
