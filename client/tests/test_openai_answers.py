"""Answers of the OpenAI-compatible endpoint: their form, whole and in streams, and what reaches Triton."""

import base64

import endpoint as http
import fake_triton_service as service
import numpy as np
import pytest
from fake_triton_service import read_inputs

DOCUMENTS = [
    "Ada built the engine.",
    {"id": "b", "title": "Odo", "text": "Odo plays the harp.", "url": "https://example.org/odo"},
    {"id": "c", "data": {"title": "Mara", "snippet": "Mara keeps a parrot.", "year": 1950}},
]
TEXTS = ["Ada built the engine.", "Odo plays the harp.", "Mara keeps a parrot."]


@pytest.fixture(scope="module")
def fake():
    return service.FakeTriton()


@pytest.fixture(scope="module")
def endpoint(fake):
    server, url = service.start(fake)
    with http.running(url) as running:
        yield running
    server.stop(grace=None).wait()


@pytest.fixture(autouse=True)
def as_new(fake):
    fake.reply = service.answer_over_passages
    fake.requests.clear()
    fake.stopped_ids.clear()


def sent(fake):
    """Return what the last request brought to Triton."""
    return {name: array.tolist() for name, array in read_inputs(fake.requests[-1]).items()}


def test_a_whole_chat_answer_has_openais_form(endpoint):
    status, answer = http.post(endpoint, {**http.CHAT, "documents": DOCUMENTS})
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "refrag"
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Ada built it."
    assert choice["finish_reason"] == "stop"


def test_usage_tells_context_tokens_and_prompt_slots_apart(endpoint):
    _, answer = http.post(endpoint, http.CHAT)
    assert answer["usage"] == {
        "prompt_tokens": 27,
        "completion_tokens": 3,
        "total_tokens": 30,
        "prompt_tokens_details": {
            "prompt_slots": 27,
            "context_tokens": 64,
            "chunks": 4,
            "stored_chunks": 3,
            "expanded_chunks": 1,
            "chunk_budget": 1,
            "cut_turns": 0,
        },
    }


def test_the_id_is_the_one_that_triton_knows(endpoint, fake):
    _, headers, answer = http.request(endpoint, "POST", http.CHAT_PATH, http.CHAT)
    assert answer["id"] == f"chatcmpl-{fake.requests[-1].id}"
    assert headers["x-request-id"] == fake.requests[-1].id


def test_a_stream_brings_the_role_with_the_first_token_and_the_reason_with_the_last(endpoint):
    events = http.post_stream(endpoint, http.CHAT)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    choices = [event["choices"][0] for event in events]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant", None, None]
    assert "".join(choice["delta"]["content"] for choice in choices) == "Ada built it."
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]


def test_a_stream_tells_the_usage_in_a_last_object_without_choices(endpoint):
    *_, last = http.post_stream(endpoint, {**http.CHAT, "stream_options": {"include_usage": True}})
    assert last["choices"] == []
    assert last["usage"] == http.post(endpoint, http.CHAT)[1]["usage"]


def test_documents_in_every_form_become_passages(endpoint, fake):
    http.post(endpoint, {**http.CHAT, "documents": DOCUMENTS})
    assert sent(fake)["passages"] == [text.encode() for text in TEXTS]


@pytest.mark.parametrize("is_stream", [False, True])
def test_citations_have_coheres_form_and_annotations_openais(endpoint, is_stream):
    body = {**http.CHAT, "documents": DOCUMENTS}
    if is_stream:
        *others, last = http.post_stream(endpoint, body)
        message = last["choices"][0]["delta"]
        assert not any("citations" in event["choices"][0]["delta"] for event in others)
    else:
        message = http.post(endpoint, body)[1]["choices"][0]["message"]
    [citation] = message["citations"]
    assert (citation["start"], citation["end"], citation["text"]) == (0, 13, "Ada built it.")
    assert [source["id"] for source in citation["sources"]] == ["doc:0", "c"]
    assert citation["sources"][0]["spans"] == [[0, 3], [4, 9]]
    assert citation["sources"][1]["document"] == {
        "id": "c",
        "title": "Mara",
        "snippet": "Mara keeps a parrot.",
        "year": 1950,
    }
    assert [each["url_citation"]["url"] for each in message["annotations"]] == ["source:doc:0", "source:c"]
    assert message["annotations"][1]["url_citation"]["title"] == "Mara"


def test_a_collection_is_searched_and_what_it_gave_is_cited(endpoint, fake):
    fake.reply = service.answer_with(
        passage_ids=["a", "b"],
        passage_titles=["", "Bridges"],
        passage_scores=np.array([0.9, 0.5], np.float32),
        passage_texts=["Odo naps.", "Ada built the bridge."],
    )
    search = {"collection": "towns", "num_passages": 2, "filter": {"year": 1931}, "search_mode": "text"}
    _, answer = http.post(endpoint, {**http.CHAT, **search})
    assert fake.requests[-1].model_name == "refrag_rag"
    assert sent(fake)["collection"] == [b"towns"] and sent(fake)["num_passages"] == [2]
    assert sent(fake)["search_mode"] == [b"text"]
    [citation] = answer["choices"][0]["message"]["citations"]
    [source] = citation["sources"]
    assert source["id"] == "b" and source["spans"] == [[4, 9]]
    assert source["document"] == {"id": "b", "title": "Bridges", "text": "Ada built the bridge."}


def test_what_a_search_found_is_told_on_request(endpoint, fake):
    fake.reply = service.answer_with(
        passage_ids=["a"],
        passage_titles=["Bridges"],
        passage_scores=np.array([0.5], np.float32),
        passage_texts=["Ada built the bridge."],
        citations=np.zeros((0, 3), np.int32),
    )
    _, answer = http.post(endpoint, {**http.CHAT, "collection": "towns", "refrag": {"return_chunks": True}})
    found = {"id": "a", "title": "Bridges", "text": "Ada built the bridge.", "score": 0.5}
    assert answer["refrag"]["passages"] == [found]


def test_collections_are_listed_where_triton_has_models_for_them(endpoint, fake, monkeypatch):
    towns = {"name": "towns", "num_passages": 3, "encoder": "", "num_bytes": None}
    fake.store = lambda operation, inputs: ({"encoder": "", "collections": [towns]}, {})
    assert http.request(endpoint, "GET", "/v1/collections")[2]["data"] == []
    monkeypatch.setattr(fake, "models", {"refrag", "refrag_rag"})
    listed = [{"id": "towns", "object": "collection", "num_passages": 3}]
    assert http.request(endpoint, "GET", "/v1/collections")[2]["data"] == listed


def test_a_collection_of_a_server_without_any_is_refused(endpoint, fake):
    fake.reply = service.fail_with("Request for unknown model: 'refrag_rag' is not found")
    status, answer = http.post(endpoint, {**http.CHAT, "collection": "towns"})
    assert (status, answer["error"]["param"]) == (400, "collection")
    assert "no collections" in answer["error"]["message"]


def test_which_chunks_were_expanded_is_told_on_request(endpoint):
    body = {**http.CHAT, "documents": DOCUMENTS, "refrag": {"return_chunks": True}}
    told = {"expanded_chunks": [2], "passage_weights": pytest.approx([1 / 3] * 3)}
    assert http.post(endpoint, body)[1]["refrag"] == told
    assert http.post_stream(endpoint, body)[-1]["refrag"] == told
    assert "refrag" not in http.post(endpoint, http.CHAT)[1]


def test_every_option_reaches_triton_under_its_own_name(endpoint, fake):
    options = {"temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": -1, "min_tokens": 2, "priority": 4}
    refrag = {"expand_fraction": 0.5, "policy": "random", "max_prompt_slots": 900, "deadline_ms": 5000}
    refrag |= {"min_confidence": 0.5}
    body = {**http.CHAT, **options, "stop": ["\n", "END"], "max_completion_tokens": 7, "refrag": refrag}
    http.post(endpoint, {**body, "repetition_penalty": 1.5})
    inputs = sent(fake)
    assert inputs.pop("text_input") == [b"Who built it?"]
    assert inputs == {
        **{name: [value] for name, value in options.items()},
        "seed": [2**64 - 1],
        "stop_words": [b"\n", b"END"],
        "max_tokens": [7],
        "repetition_penalty": [1.5],
        **{name: [value] for name, value in refrag.items()},
        "policy": [b"random"],
        "stream": [False],
    }


def test_what_is_left_out_is_the_servers_to_choose(endpoint, fake):
    http.post(endpoint, http.CHAT)
    assert set(sent(fake)) == {"text_input", "stream", "deadline_ms"}


def test_what_other_clients_send_without_effect_is_taken(endpoint):
    body = {
        "n": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "user": "somebody",
        "metadata": {"a": "b"},
        "stop": None,
        "store": False,
    }
    assert http.post(endpoint, {**http.CHAT, **body})[0] == 200


def test_an_empty_answer_that_a_client_sends_back_is_left_out(endpoint, fake):
    turns = [("user", "Hello?"), ("assistant", ""), ("user", "Who are you?"), ("assistant", "Ada."), ("user", "Why?")]
    status, _ = http.post(endpoint, {"messages": [{"role": role, "content": text} for role, text in turns]})
    assert status == 200 and sent(fake)["history"] == [
        b'{"role": "user", "content": "Hello?\\n\\nWho are you?"}',
        b'{"role": "assistant", "content": "Ada."}',
    ]


def test_earlier_messages_become_history_and_instructions_stand_before_the_question(endpoint, fake):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ada.", "refusal": None, "annotations": [], "citations": []},
        {"role": "user", "content": [{"type": "text", "text": "What"}, {"type": "text", "text": "did she build?"}]},
        {"role": "user", "content": "And when?"},
    ]
    http.post(endpoint, {"messages": messages})
    assert sent(fake)["text_input"] == [b"Be brief.\n\nWhat\ndid she build?\n\nAnd when?"]
    assert sent(fake)["history"] == [
        b'{"role": "user", "content": "Who?"}',
        b'{"role": "assistant", "content": "Ada."}',
    ]


def test_ignore_eos_makes_the_answer_as_long_as_allowed(endpoint, fake):
    http.post(endpoint, {**http.CHAT, "ignore_eos": True, "max_tokens": 9})
    assert sent(fake)["min_tokens"] == sent(fake)["max_tokens"] == [9]


def test_log_probabilities_come_token_by_token(endpoint):
    body = {**http.CHAT, "logprobs": True}
    whole = http.post(endpoint, body)[1]["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in whole] == ["Ada", " built", " it."]
    assert [token["logprob"] for token in whole] == [-0.5] * 3
    assert whole[0]["bytes"] == list(b"Ada")
    streamed = [event["choices"][0]["logprobs"]["content"] for event in http.post_stream(endpoint, body)]
    assert [token for tokens in streamed for token in tokens] == whole


def test_a_completion_answers_a_prompt_over_documents(endpoint, fake):
    body = {"prompt": "Who built it?", "documents": DOCUMENTS, "logprobs": 0}
    _, answer = http.post(endpoint, body, http.COMPLETION_PATH)
    assert answer["object"] == "text_completion"
    [choice] = answer["choices"]
    assert choice["text"] == "Ada built it."
    assert choice["logprobs"]["tokens"] == ["Ada", " built", " it."]
    assert choice["logprobs"]["text_offset"] == [0, 3, 9]
    assert choice["citations"][0]["sources"][0]["id"] == "doc:0"
    events = http.post_stream(endpoint, body, http.COMPLETION_PATH)
    assert "".join(event["choices"][0]["text"] for event in events) == "Ada built it."
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in events] == [[0], [3], [9]]


def test_models_are_listed_and_found_by_name(endpoint):
    _, _, models = http.request(endpoint, "GET", "/v1/models")
    assert [model["id"] for model in models["data"]] == ["refrag", "chunk_encoder"]
    assert http.request(endpoint, "GET", "/v1/models/refrag")[2] == models["data"][0]
    status, _, answer = http.request(endpoint, "GET", "/v1/models/gpt-4o")
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (404, "model", "model_not_found")


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_an_embedding_is_the_mean_direction_of_a_texts_chunks(endpoint, fake, encoding_format):
    fake.store = service.encode_in_two_chunks
    body = {"model": "chunk_encoder", "input": ["abcdef", "ghijkl"], "encoding_format": encoding_format}
    status, answer = http.post(endpoint, body, "/v1/embeddings")
    assert status == 200
    vectors = [each["embedding"] for each in answer["data"]]
    if encoding_format == "base64":
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    assert np.asarray(vectors) == pytest.approx(np.full((2, 2), 0.5**0.5))
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_the_places_of_chunks_are_told(endpoint, fake):
    fake.store = service.encode_in_two_chunks
    _, answer = http.post(endpoint, {"documents": ["abcdef"]}, "/v1/chunks")
    assert [(each["document"], each["start"], each["end"]) for each in answer["data"]] == [(0, 0, 3), (0, 3, 6)]


def test_health_follows_triton(endpoint, fake):
    assert http.request(endpoint, "GET", "/health")[0] == 200
    fake.is_model_ready = False
    assert http.request(endpoint, "GET", "/health")[0] == 503
    fake.is_model_ready = True


def test_metrics_count_requests_tokens_and_times(endpoint):
    http.post(endpoint, http.CHAT)
    http.post(endpoint, {**http.CHAT, "temprature": 1})
    _, _, text = http.request(endpoint, "GET", "/metrics")
    assert 'refrag_openai_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'refrag_openai_requests_total{route="/v1/chat/completions",status="400"}' in text
    for name in ("output_tokens_total", "prompt_slots_total", "ttft_seconds_count", "running_requests"):
        assert f"refrag_openai_{name}" in text


def test_the_page_is_one_file_that_asks_nobody_else(endpoint):
    status, headers, text = http.request(endpoint, "GET", "/")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "://" not in text
