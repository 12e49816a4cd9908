"""The ensemble answers over HTTP, as curl and other people's tools call it."""

import json
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.server

REQUEST = {"text_input": "What does Mara Tolen keep?", "passages": ["Mara Tolen keeps a parrot.", "Odo naps."]}


def post(server, endpoint, body):
    request = urllib.request.Request(
        f"http://{server.http_address}/v2/models/refrag/{endpoint}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=60)


def events(response):
    return [json.loads(line[len(b"data: ") :]) for line in response if line.startswith(b"data: ")]


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
