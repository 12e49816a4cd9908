"""The ensemble answers over HTTP, as curl and other people's tools call it."""

import json
import urllib.error

import pytest
from raw_requests import events, post

pytestmark = pytest.mark.server

REQUEST = {"text_input": "What does Mara Tolen keep?", "passages": ["Mara Tolen keeps a parrot.", "Odo naps."]}


def test_generate_stream_sends_the_same_text_as_grpc(server, client):
    with post(server, "generate_stream", {**REQUEST, "max_tokens": 8, "temperature": 1.5, "seed": 4}) as response:
        pieces = events(response)
    expected = client.generate(REQUEST["text_input"], REQUEST["passages"], max_tokens=8, temperature=1.5, seed=4)
    assert "".join(piece["text_output"] for piece in pieces) == expected.text
    assert pieces[-1]["finish_reason"] == expected.finish_reason


def test_generate_answers_in_one_piece_with_stream_false(server, client):
    with post(server, "generate", {**REQUEST, "max_tokens": 8, "stream": False}) as response:
        answer = json.load(response)
    assert answer["text_output"] == client.generate(REQUEST["text_input"], REQUEST["passages"], max_tokens=8).text


def test_an_error_over_http_has_the_same_typed_message(server):
    with pytest.raises(urllib.error.HTTPError) as caught, post(server, "generate_stream", {"text_input": ""}):
        pass
    assert caught.value.code == 400
    assert "text_input is empty" in caught.value.read().decode()


def test_the_list_of_expanded_chunks_comes_with_the_first_response_and_the_last_alone(server):
    with post(server, "generate_stream", {**REQUEST, "expand_fraction": 1, "max_tokens": 8}) as response:
        pieces = events(response)
    assert len(pieces) > 2
    assert [piece["expanded_chunks"] for piece in pieces] == [[0, 1], *[[]] * (len(pieces) - 2), [0, 1]]
    assert {piece["num_expanded_chunks"] for piece in pieces} == {2}
