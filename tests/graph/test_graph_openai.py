"""OpenAI's own Python client, and hostile callers, against the endpoint before the real server."""

import http.client
import json
import random
import socket
from contextlib import closing
from itertools import pairwise
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from openai_endpoint import run_endpoint
from raw_requests import PATIENCE_SECONDS
from test_graph_cancel import ENDLESS, PASSAGES, QUESTION, count_generated_tokens, read_counter, wait_until

from examples.frameworks import asking
from refrag.pipeline import encode_chunks

pytestmark = pytest.mark.server

ASK = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def api(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=PATIENCE_SECONDS) as api:
        yield api


def ask(api, messages=ASK, passages=PASSAGES, refrag=None, **options):
    body = {"documents": list(passages), "refrag": refrag or {}}
    return api.chat.completions.create(model="refrag", messages=messages, extra_body=body, **options)


def read(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_answers_are_those_of_the_grpc_client_whole_and_streamed(api, client, heldout):
    for context in heldout[:8]:
        question, passages = context.questions[0].text, context.passages
        expected = client.generate(question, passages, max_tokens=12)
        messages = [{"role": "user", "content": question}]
        whole = ask(api, messages, passages, max_tokens=12)
        assert whole.choices[0].message.content == expected.text
        assert whole.choices[0].finish_reason == expected.finish_reason
        assert whole.usage.prompt_tokens == expected.statistics.prompt_slots
        assert whole.usage.prompt_tokens_details.context_tokens == expected.statistics.context_tokens
        assert read(ask(api, messages, passages, max_tokens=12, stream=True)) == expected.text


def test_sampling_options_mean_what_they_mean_over_grpc(api, client):
    options = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 7}
    expected = client.generate(QUESTION, PASSAGES, stop_words=["\n"], **options)
    assert ask(api, stop="\n", **options).choices[0].message.content == expected.text


def test_usage_ends_a_stream_that_asked_for_it(api):
    *_, last = ask(api, stream=True, stream_options={"include_usage": True}, max_tokens=4)
    assert last.choices == []
    assert last.usage.completion_tokens <= 4
    assert last.usage.prompt_tokens_details.prompt_slots == last.usage.prompt_tokens


def test_log_probabilities_are_the_grpc_clients(api, client):
    expected = client.generate(QUESTION, PASSAGES, max_tokens=6, log_probs=True)
    told = ask(api, max_tokens=6, logprobs=True).choices[0].logprobs.content
    assert [token.logprob for token in told] == pytest.approx(expected.log_probs, abs=1e-4)
    assert "".join(token.token for token in told) == expected.text


def test_a_completion_answers_as_a_chat_does(api):
    body = {"documents": PASSAGES}
    completion = api.completions.create(model="refrag", prompt=QUESTION, max_tokens=8, extra_body=body)
    assert completion.choices[0].text == ask(api, max_tokens=8).choices[0].message.content
    stream = api.completions.create(model="refrag", prompt=QUESTION, max_tokens=8, extra_body=body, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == completion.choices[0].text


@pytest.mark.parametrize("is_stream", [False, True])
def test_citations_name_the_documents_that_were_read_in_full(api, is_stream):
    passages = [
        {"id": "pets", "title": "Pets", "text": PASSAGES[0]},
        {"id": "music", "text": "Odo Marsk plays the harp."},
    ]
    answer = ask(api, passages=passages, refrag={"expand_fraction": 1}, stream=is_stream, max_tokens=8)
    message = list(answer)[-1].choices[0].delta if is_stream else answer.choices[0].message
    [citation] = message.model_extra["citations"] if is_stream else message.citations
    assert [source["id"] for source in citation["sources"]] == ["pets", "music"]
    for source, passage in zip(citation["sources"], passages, strict=True):
        [[start, end]] = source["spans"]
        assert passage["text"][start:end] == passage["text"]


def test_earlier_messages_are_the_grpc_clients_history(api, client):
    history = [{"role": "user", "content": "Who plays the harp?"}, {"role": "assistant", "content": "Odo Marsk."}]
    expected = client.generate(QUESTION, PASSAGES, history=history, max_tokens=8)
    answer = ask(api, [*history, *ASK], max_tokens=8)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.statistics.prompt_slots


def test_models_are_listed(api):
    assert [model.id for model in api.models.list()] == ["refrag", "chunk_encoder"]
    assert api.models.retrieve("refrag").id == "refrag"


def test_an_embedding_of_one_chunk_is_the_encoders_vector(api, reference, demo_checkpoint):
    told = api.embeddings.create(model="chunk_encoder", input=["parrot", "harp"])
    chunks = reference.chunker.context_chunks(["parrot", "harp"])
    vectors = encode_chunks(demo_checkpoint.encoder, reference.chunker, chunks).numpy()
    for embedding, vector in zip(told.data, vectors, strict=True):
        assert np.dot(embedding.embedding, vector / np.linalg.norm(vector)) == pytest.approx(1, abs=1e-3)


def test_the_chunks_of_a_document_lie_in_it_without_a_gap(base_url):
    document = "Mara Tolen keeps a parrot. 🦜  She calls it Otto, and it calls her by her name, every morning." * 5
    chunks = post(base_url, "/chunks", {"documents": ["", document]})[1]["data"]
    assert len(chunks) > 3
    assert {chunk["document"] for chunk in chunks} == {1}
    assert (chunks[0]["start"], chunks[-1]["end"]) == (0, len(document))
    # A character of several tokens may lie in two chunks.
    assert all(after["start"] in (chunk["end"], chunk["end"] - 1) for chunk, after in pairwise(chunks))


def post(base_url, path, body):
    """Return status and JSON."""
    url = urlsplit(base_url)
    with closing(http.client.HTTPConnection(url.netloc, timeout=PATIENCE_SECONDS)) as connection:
        content = body if isinstance(body, bytes) else json.dumps(body)
        connection.request("POST", url.path + path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"refrag": {"expand_fraction": 1.5}}, "refrag.expand_fraction"),
        ({"refrag": {"policy": "best"}}, "refrag.policy"),
        ({"refrag": {"max_prompt_slots": 3}}, "refrag.max_prompt_slots"),
        ({"passages": ["Mara keeps a cat."] * 10_000}, "documents"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_the_server_refuses_names_the_field(api, options, param, is_stream):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, stream=is_stream, **options)
    assert caught.value.param == param


def test_the_connectors_of_frameworks_close_what_they_open(base_url, client, monkeypatch):
    opened = []

    class Noted(openai.OpenAI):
        def __init__(self, **options):
            super().__init__(**options)
            opened.append(self)

    monkeypatch.setattr(asking, "OpenAI", Noted)
    endpoint = asking.Endpoint(base_url, options={"max_tokens": 8})
    expected = client.generate(QUESTION, PASSAGES, max_tokens=8).text
    assert endpoint.ask(ASK, PASSAGES).text == expected
    assert "".join(part.text for part in endpoint.stream(ASK, PASSAGES)) == expected
    stream = endpoint.stream(ASK, PASSAGES)
    next(stream)
    stream.close()
    assert [each.is_closed() for each in opened] == [True] * 3


def test_an_unknown_model_is_not_found(api):
    with pytest.raises(openai.NotFoundError, match="served are refrag"):
        api.chat.completions.create(model="gpt-4o", messages=ASK)


def test_a_deadline_that_passes_is_a_timeout(api):
    with pytest.raises(openai.InternalServerError) as caught:
        ask(api, refrag={"deadline_ms": 150}, **ENDLESS)
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_caller_who_leaves_stops_the_decoder(base_url, server, client, is_stream):
    url = urlsplit(base_url)
    body = json.dumps({"messages": ASK, "documents": PASSAGES, "stream": is_stream, **ENDLESS}).encode()
    before = count_generated_tokens(server)
    with socket.create_connection((url.hostname, url.port), timeout=PATIENCE_SECONDS) as connection:
        head = f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if is_stream:
            connection.recv(1000)
        else:
            wait_until(lambda: count_generated_tokens(server) > before, seconds=PATIENCE_SECONDS)
    wait_until(lambda: count_running(server) == 0, seconds=30)
    assert count_generated_tokens(server) - before < ENDLESS["max_tokens"] / 2


def count_running(server):
    return read_counter(server, "refrag_active_requests")


def test_a_body_of_a_hundred_megabytes_is_refused(base_url, api):
    status, answer = post(base_url, "/chat/completions", b'{"documents": ["' + b"x" * 100_000_000 + b'"]}')
    assert (status, answer["error"]["param"]) == (413, "body")
    assert ask(api, max_tokens=1).usage.completion_tokens <= 1


def test_a_slow_reader_holds_nobody_up(base_url, api):
    url = urlsplit(base_url)
    body = json.dumps(
        {"messages": ASK, "stream": True, "logprobs": True, "max_tokens": 400, "min_tokens": 400}
    ).encode()
    with closing(socket.socket()) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect((url.hostname, url.port))
        head = f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        for _ in range(5):
            assert ask(api, max_tokens=4).choices


def test_spoilt_bodies_are_refused_with_a_field_or_answered(base_url, api):
    rng = random.Random("spoilt bodies for the real server")
    values = [None, True, -1, 0, 2**70, 0.5, 1e308, "", "a", [], [""], {}, {"a": 1}]
    fields = [
        "messages",
        "documents",
        "refrag",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "priority",
    ]
    for _ in range(150):
        body = {"messages": ASK, "documents": PASSAGES, "max_tokens": 2}
        for field in rng.sample(fields, 2):
            body[field] = rng.choice(values)
        for option in rng.sample(["expand_fraction", "max_prompt_slots", "policy", "deadline_ms"], rng.randint(0, 1)):
            body["refrag"] = {option: rng.choice(values)}
        status, answer = post(base_url, "/chat/completions", body)
        assert status == 200 or (status in (400, 504) and answer["error"]["param"]), (body, status, answer)
    assert ask(api, max_tokens=1).choices


def test_a_server_that_is_gone_is_told():
    with run_endpoint("127.0.0.1:1") as url:
        status, answer = post(url, "/chat/completions", {"messages": ASK})
    assert (status, answer["error"]["code"]) == (503, "unavailable")
    assert "127.0.0.1:1" in answer["error"]["message"]
