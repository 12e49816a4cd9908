"""`refrag_watched` answers as the ensemble does, and notices callers who left without a word."""

import http.client
import json
import re
from contextlib import closing

import grpc
import numpy as np
import pytest
from raw_requests import as_bytes, raw_request
from test_graph_cancel import DEADLINES_MS, ENDLESS, PASSAGES, QUESTION, wait_until_free
from tritonclient.grpc import InferRequestedOutput, service_pb2_grpc

from refrag_client import Cancelled, DeadlineExceeded, GenerateRequest, InvalidRequest, RefragClient
from refrag_client.tensors import encode_request

pytestmark = pytest.mark.server


@pytest.fixture
def watched(server):
    with RefragClient(server.grpc_address, model="refrag_watched") as client:
        yield client


def test_its_inputs_and_outputs_are_the_ensembles(repository):
    configs = [(repository / name / "config.pbtxt").read_text() for name in ("refrag", "refrag_watched")]
    declared = [re.findall(r"^  \{ name: .*$", config, re.MULTILINE) for config in configs]
    assert declared[0] == declared[1] != []


def test_answers_and_statistics_are_the_ensembles(client, watched, heldout):
    for context in heldout[:10]:
        question, options = context.questions[0].text, {"max_tokens": 12, "log_probs": True}
        own = client.generate(question, context.passages, **options)
        passed_on = watched.generate(question, context.passages, **options)
        assert (passed_on.text, passed_on.token_ids) == (own.text, own.token_ids)
        assert passed_on.finish_reason == own.finish_reason
        # The second one finds its prompt in the KV cache, and sums in another order.
        assert passed_on.log_probs == pytest.approx(own.log_probs, abs=1e-4)
        assert passed_on.statistics.expanded_chunks == own.statistics.expanded_chunks


def test_every_piece_comes_as_the_ensemble_sends_it(client, watched):
    pieces = [list(each.stream(QUESTION, PASSAGES, max_tokens=8, min_tokens=8)) for each in (client, watched)]
    assert [piece.text for piece in pieces[0]] == [piece.text for piece in pieces[1]]


def test_only_the_outputs_that_are_asked_for_come(server):
    inputs = {"text_input": as_bytes(QUESTION.encode()), "max_tokens": (np.array([3]), "INT64")}
    responses = raw_request(server, inputs, model="refrag_watched", outputs=[InferRequestedOutput("token_ids")])
    assert responses
    for response in responses:
        assert [output.name for output in response.get_response().outputs] == ["token_ids"]


def test_errors_keep_their_types(watched):
    with pytest.raises(InvalidRequest, match="max_tokens"):
        watched.generate(QUESTION, PASSAGES, max_tokens=0)
    with pytest.raises(DeadlineExceeded):
        watched.generate(QUESTION, PASSAGES, deadline_ms=150, **ENDLESS)


def test_an_error_that_comes_after_pieces_reaches_the_caller(watched):
    stream = next(
        filter(has_begun, (watched.stream(QUESTION, PASSAGES, deadline_ms=ms, **ENDLESS) for ms in DEADLINES_MS))
    )
    with pytest.raises(DeadlineExceeded, match="the deadline of request"):
        list(stream)


def has_begun(stream):
    """Return whether the first piece comes before the deadline."""
    try:
        return bool(next(stream).token_ids)
    except DeadlineExceeded:
        return False


@pytest.mark.parametrize("leave", ["cancel", "close"])
def test_a_caller_who_leaves_without_a_word_is_noticed(server, client, leave):
    request = GenerateRequest(QUESTION, PASSAGES, request_id=f"left-by-{leave}", **ENDLESS)
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([encode_request(request, "refrag_watched")]))
        next(call)
        call.cancel() if leave == "cancel" else channel.close()
        # Far sooner than the deadline, which is a minute.
        wait_until_free(client, request.request_id, seconds=30)


def test_a_caller_over_http_who_leaves_is_noticed_too(server, client):
    with closing(http.client.HTTPConnection(server.http_address, timeout=60)) as connection:
        body = {"id": "left-over-http", "text_input": QUESTION, **ENDLESS}
        connection.request("POST", "/v2/models/refrag_watched/generate_stream", json.dumps(body))
        assert connection.getresponse().readline().startswith(b"data: ")
    wait_until_free(client, "left-over-http", seconds=30)


def test_a_stop_for_another_caller_ends_nothing(server, watched):
    with watched.stream(QUESTION, PASSAGES, request_id="kept", **ENDLESS) as stream:
        next(stream)
        for request_id in ("kept", "to-come"):
            assert not send_stop(server, request_id, sequence_id=7)
        assert all(next(stream).text is not None for _ in range(200))
        send_stop(server, "kept")
        with pytest.raises(Cancelled):
            list(stream)
    assert watched.generate(QUESTION, PASSAGES, request_id="to-come", max_tokens=2).token_ids


def test_the_next_request_with_an_id_is_not_told_that_its_last_caller_left(server, watched, client):
    for _ in range(5):
        # Its client and the model in front both send a stop.
        with watched.stream(QUESTION, PASSAGES, request_id="twice", **ENDLESS) as stream:
            next(stream)
        wait_until_free(client, "twice", seconds=30)


def send_stop(server, request_id, **options):
    """Return the decoder's responses to a stop, which are none; options: `sequence_id`, Triton's correlation id."""
    stop = {"stop": (np.array([True]), "BOOL")}
    return raw_request(server, stop, model="decoder", request_id=request_id, **options)
