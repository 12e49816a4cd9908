"""Bodies that the OpenAI-compatible endpoint refuses: what is wrong is named, and nobody else notices."""

import copy
import json
import random
import string
from contextlib import closing

import endpoint as http
import pytest

from refrag_client.openai import app
from refrag_client.openai.errors import from_validation

NUM_FUZZED = 1000
VALID = {
    http.CHAT_PATH: {
        "model": "refrag",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Ada."},
            {"role": "user", "content": [{"type": "text", "text": "Who built it?"}]},
        ],
        "documents": [
            "Ada built it.",
            {"id": "b", "title": "B", "text": "Odo sings."},
            {"id": "c", "data": {"text": "d"}},
        ],
        "refrag": {"expand_fraction": 0.5, "policy": "learned", "max_prompt_slots": 400, "return_chunks": True},
        "max_completion_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.5,
        "seed": 1,
        "stop": ["\n"],
        "n": 1,
        "logprobs": True,
        "stream": False,
    },
    http.COMPLETION_PATH: {
        "prompt": "Who built it?",
        "documents": [{"text": "Ada built it."}],
        "max_tokens": 8,
        "stop": "END",
        "logprobs": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/embeddings": {"model": "chunk_encoder", "input": ["Ada built it."], "encoding_format": "float"},
    "/v1/chunks": {"documents": ["Ada built it."]},
}


@pytest.mark.parametrize(
    ("change", "param", "told"),
    [
        ({"temprature": 1}, "temprature", "is temperature meant?"),
        ({"passages": ["a"]}, "passages", "is documents meant?"),
        ({"expand_fraction": 0.5}, "expand_fraction", "is refrag.expand_fraction meant?"),
        ({"refrag": {"polcy": "learned"}}, "refrag.polcy", "is policy meant?"),
        ({"refrag": {"expand_fraction": "0.5"}}, "refrag.expand_fraction", "'0.5'"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "neither text nor a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "image_url"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "the last message must be the user's"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "send one"),
        ({"n": 2}, "n", "send 1"),
        ({"n": True}, "n", "send 1"),
        ({"presence_penalty": 0.5}, "presence_penalty", "send 0"),
        ({"logprobs": True, "top_logprobs": 5}, "top_logprobs", "send 0"),
        ({"tools": [{"type": "function"}]}, "tools", "not to be had here"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not to be had here"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"stop": [1]}, "stop", "a list of texts"),
        ({"documents": "a"}, "documents", "valid list"),
        ({"documents": [{"id": "a"}]}, "documents[0]", "no passage among the keys"),
        ({"documents": ["a", {"id": 1, "text": "a"}]}, "documents[1]", "id of a document is 1"),
        ({"documents": [{"data": {"text": "a"}, "text": "b"}]}, "documents[0]", "put it into data"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "is for streams"),
        ({"documents": ["a"], "collection": "towns"}, "documents", "send one of them"),
        ({"num_passages": 3}, "num_passages", "name one, or leave it out"),
        ({"filter": {"year": 1931}}, "filter", "name one, or leave it out"),
        ({"search_mode": "text"}, "search_mode", "name one, or leave it out"),
        ({"ignore_eos": True}, "ignore_eos", "as long as max_tokens"),
        ({"stream": "yes"}, "stream", "valid boolean"),
    ],
)
def test_what_is_wrong_with_a_body_is_named(endpoint, change, param, told):
    status, answer = http.post(endpoint, {**http.CHAT, **change})
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param
    assert told in answer["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"null", b'"\xff"', b"[" * 50_000, b'{"messages": NaN}'])
def test_a_body_that_is_no_json_object_is_refused(endpoint, body):
    status, answer = http.post(endpoint, body)
    assert status == 400
    assert answer["error"]["param"] in ("body", "messages")


def test_a_text_that_is_no_unicode_is_refused(endpoint):
    status, answer = http.post(endpoint, b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
    assert (status, answer["error"]["param"]) == (400, "messages")
    assert "surrogate" in answer["error"]["message"]


NESTED = b"[" * 900 + b"]" * 900


@pytest.mark.parametrize(
    "documents",
    [
        b'[{"id": "\\ud800", "text": "Ada built it."}]',
        b'[{"text": "Ada built it.", "note": ["\\ud800"]}]',
        b'[{"data": {"text": "Ada built it.", "\\ud800": 1}}]',
        b'[{"\\ud800": 1}]',
        b'[{"text": "Ada built it.", "note": ' + NESTED + b"}]",
        b'[{"text": "Ada built it.", "score": NaN}]',
    ],
)
@pytest.mark.parametrize("is_stream", [b"true", b"false"])
def test_a_document_that_a_citation_cannot_bring_back_is_refused(endpoint, documents, is_stream):
    body = b'{"messages": [{"role": "user", "content": "Who?"}], "stream": %s, "documents": %s}'
    status, answer = http.post(endpoint, body % (is_stream, documents))
    assert (status, answer["error"]["param"]) == (400, "documents[0]")


@pytest.mark.parametrize(
    "field", [b'"refrag": {"\\ud800": 1}', b'"metadata": {"\\ud800": 1}', b'"temperature": ' + NESTED]
)
def test_names_and_values_that_are_no_unicode_or_deep_are_refused(endpoint, field):
    status, answer = http.post(endpoint, b'{"messages": [{"role": "user", "content": "Who?"}], ' + field + b"}")
    assert status == 400 and answer["error"]["param"]


MANY = 5000


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"documents": [1] * MANY}, "documents[0]"),
        ({"messages": [1] * MANY}, "messages[0]"),
        ({f"a{number}": 1 for number in range(MANY)}, "body"),
        ({"refrag": {f"a{number}": 1 for number in range(MANY)}}, "refrag"),
        ({"metadata": {f"a{number}": 1 for number in range(MANY)}}, "metadata"),
    ],
)
def test_thousands_of_faults_make_one_complaint(endpoint, monkeypatch, change, param):
    complaints = []

    def note(path, errors):
        complaints.extend(errors)
        return from_validation(path, errors)

    monkeypatch.setattr(app, "from_validation", note)
    status, answer = http.post(endpoint, {**http.CHAT, **change})
    assert (status, answer["error"]["param"]) == (400, param)
    assert len(complaints) == 1


@pytest.mark.parametrize(("path", "field"), [("/v1/embeddings", "input"), ("/v1/chunks", "documents")])
def test_texts_to_encode_are_limited_in_number(endpoint, path, field):
    assert http.post(endpoint, {field: ["Ada."] * 2048}, path)[0] == 200
    status, answer = http.post(endpoint, {field: ["Ada."] * 2049}, path)
    assert (status, answer["error"]["param"]) == (400, field)
    assert "at most 2048" in answer["error"]["message"]


def test_an_error_does_not_repeat_all_that_was_sent(endpoint):
    status, answer = http.post(endpoint, {**http.CHAT, "a" * 90_000: 1})
    assert status == 400 and len(answer["error"]["message"]) < 4000 and len(answer["error"]["param"]) < 400


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_body_beyond_the_limit_is_refused_and_its_sender_hears_why(endpoint, is_declared):
    body = json.dumps({**http.CHAT, "documents": ["x" * 100_000]}).encode()
    with closing(http.connect(endpoint)) as connection:
        headers = {"Content-Length": str(len(body))} if is_declared else {}
        content = body if is_declared else iter([body[:50_000], body[50_000:]])
        connection.request("POST", http.CHAT_PATH, content, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        answer = json.loads(response.read())
    assert (response.status, answer["error"]["param"]) == (413, "body")


NONSENSE = (None, True, -1, 2**70, 1e308, "", "x" * 50_000, "\u202e\0", [], [[]], {}, {"a": {}}, [None] * 300)


def spoil(rng, body):
    """Change one to three places of a valid body."""
    for _ in range(rng.randint(1, 3)):
        if places := list(holders(body)):
            spoil_one(rng, rng.choice(places))
    return body


def holders(value):
    """Yield every object and every list that has something in it."""
    if isinstance(value, dict | list) and value:
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from holders(each)


def spoil_one(rng, holder):
    place = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    way = rng.randrange(4)
    if way == 0:
        holder[place] = copy.deepcopy(rng.choice(NONSENSE))
    elif way == 1:
        del holder[place]
    elif way == 2 and isinstance(holder, dict):
        holder["".join(rng.choices(string.ascii_lowercase, k=6))] = copy.deepcopy(rng.choice(NONSENSE))
    elif way == 2:
        holder.append(copy.deepcopy(rng.choice(NONSENSE)))
    elif isinstance(holder, dict):
        holder[place + "s"] = holder.pop(place)
    else:
        holder[place] = [holder[place]]


def test_a_thousand_spoilt_bodies_are_each_refused_with_a_field_or_answered(endpoint):
    rng = random.Random("spoilt bodies")
    refused = 0
    for _ in range(NUM_FUZZED):
        path, body = rng.choice(list(VALID.items()))
        spoilt = spoil(rng, copy.deepcopy(body))
        status, answer = http.post(endpoint, spoilt, path)
        assert status in (200, 400, 404, 413), (spoilt, answer)
        if status != 200:
            refused += 1
            assert answer["error"]["param"], (spoilt, answer)
    assert refused > NUM_FUZZED / 2
