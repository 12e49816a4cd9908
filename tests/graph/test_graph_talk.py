"""Earlier turns and citations through the real server: as the in-process reference has them, over gRPC and HTTP."""

import json
import re

import numpy as np
import pytest
from raw_requests import as_bytes, events, post, raw_request

from refrag.history import read_turns
from refrag.request import ExpansionOptions, Request, SamplingParams
from refrag_client import Citation, InvalidRequest

pytestmark = pytest.mark.server

MAX_TOKENS = 8
TURN = re.compile(r"Question: (.*) Answer: (.*)")


@pytest.fixture(scope="module")
def followups(heldout):
    """Question, passages and turns of the questions that only an earlier turn explains."""
    cases = []
    for context in heldout:
        turns = [match for passage in context.passages if (match := TURN.fullmatch(passage))]
        if turns:
            passages = [passage for passage in context.passages if not TURN.fullmatch(passage)]
            cases.append((context.questions[0].text, passages, [text for turn in turns for text in turn.groups()]))
    assert len(cases) >= 4
    return cases


def ask_both(client, reference, question, passages, history, **options):
    expansion = ExpansionOptions(**options)
    request = Request(question, passages, expansion, read_turns(history))
    expected = reference.answer(request, SamplingParams(MAX_TOKENS))
    served = client.generate(question, passages, history=history, max_tokens=MAX_TOKENS, **options)
    assert list(served.token_ids) == expected.token_ids
    assert served.statistics.prompt_slots == expected.prompt.num_slots
    assert list(served.statistics.expanded_chunks) == expected.expanded
    assert served.statistics.num_cut_turns == expected.num_cut_turns
    assert served.citations == tuple(Citation(*row) for row in expected.citations.tolist())
    assert served.passage_weights == pytest.approx(expected.passage_weights.tolist(), abs=1e-3)
    assert len(served.passage_weights) == len(passages)
    return served


@pytest.mark.parametrize("options", [{"policy": "all"}, {"policy": "similarity", "expand_fraction": 0.4}])
def test_a_conversation_served_equals_the_reference(client, reference, followups, options):
    for question, passages, history in followups:
        ask_both(client, reference, question, passages, history, **options)


def test_a_long_conversation_becomes_chunks_that_are_stored_and_expanded_but_never_cited(client, reference, followups):
    question, passages, history = followups[0]
    long = [f"{text} That was turn {number}." for number, text in enumerate(history * 40)]
    options = {"policy": "random", "expand_fraction": 0.6}
    ask_both(client, reference, question, passages, long, **options)
    served = ask_both(client, reference, question, passages, long, **options)
    figures = served.statistics
    assert figures.num_stored_chunks == figures.num_chunks
    num_of_passages = reference.prepare(Request(question, passages), MAX_TOKENS).chunks.passages.size
    assert max(figures.expanded_chunks) >= num_of_passages, "turns are expanded too"
    assert {citation.passage for citation in served.citations} <= set(range(len(passages)))


def test_turns_are_left_out_only_when_the_window_is_full_and_that_is_told_or_refused(client, reference):
    passages = ["Mara Tolen keeps a parrot."]
    history = [f"What is said of ship {number}, which came late? " * 4 for number in range(1200)]
    served = ask_both(client, reference, "Who keeps a parrot?", passages, history, policy="none")
    figures = served.statistics
    assert 0 < figures.num_cut_turns < len(history)
    assert 4096 - MAX_TOKENS - 20 < figures.prompt_slots <= 4096 - MAX_TOKENS
    with pytest.raises(InvalidRequest, match=r"history has 1200 turns, .* or set whole_history to false"):
        client.generate("Who keeps a parrot?", passages, history=history, max_tokens=MAX_TOKENS, whole_history=True)


def test_a_share_left_to_the_server_gives_way_to_the_window(client):
    passages = [f"Ship {number} brought {number} barrels of oil to the old harbour." * 3 for number in range(600)]
    answer = client.generate("What did ship 7 bring?", passages, max_tokens=MAX_TOKENS)
    assert 0 < answer.statistics.num_expanded_chunks < answer.statistics.num_chunks // 10
    assert answer.statistics.prompt_slots <= 4096 - MAX_TOKENS
    with pytest.raises(InvalidRequest, match="window is 4096; send fewer passages"):
        client.generate("What did ship 7 bring?", passages, max_tokens=MAX_TOKENS, expand_fraction=0.1)


def test_citations_come_with_the_last_response_alone(client):
    passages = ["Mara Tolen keeps a 🦜 parrot.", "Odo naps."]
    with client.stream("Who keeps a parrot?", passages, expand_fraction=1, max_tokens=6) as stream:
        pieces = list(stream)
    assert len(pieces) > 1
    assert not any(piece.citations or piece.passage_weights for piece in pieces[:-1])
    assert stream.answer.citations == (Citation(0, 0, len(passages[0])), Citation(1, 0, len(passages[1])))
    assert sum(stream.answer.passage_weights) == pytest.approx(1)


def test_a_conversation_over_http_is_the_same(server, client):
    turns = [{"role": "user", "content": "Who keeps a parrot?"}, {"role": "assistant", "content": "Mara Tolen"}]
    body = {
        "text_input": "And where?",
        "passages": ["Mara Tolen keeps a parrot in Ostrava.", "Odo naps."],
        "history": [json.dumps(turn) for turn in turns],
        "expand_fraction": 1,
        "max_tokens": 6,
    }
    with post(server, "generate_stream", body) as response:
        last = events(response)[-1]
    expected = client.generate(body["text_input"], body["passages"], history=turns, expand_fraction=1, max_tokens=6)
    assert last["citations"] == [0, 0, 37, 1, 0, 9]
    assert len(last["passage_weights"]) == 2
    assert last["num_output_tokens"] == len(expected.token_ids)


@pytest.mark.parametrize(
    "elements, named",
    [
        ([b"{oops", b"{}"], "history[0] begins with a brace and is not JSON"),
        ([b'{"role": "system", "content": "x"}'], "history[0] has the role 'system'; allowed are user and assistant"),
        ([b"a", b" "], "history[1] is empty"),
        ([b"a"], "history ends with a user's turn"),
        ([b"a\xff", b"b"], "history[0] is not valid UTF-8"),
        ([b"x" * 3_000_000, b"x" * 3_000_000], "and history hold 6000004 bytes, the limit is 4194304"),
    ],
)
def test_a_bad_conversation_is_refused_and_nobody_else_notices(server, client, elements, named):
    before = client.generate("Who?", ["Mara Tolen."], max_tokens=4).token_ids
    (message,) = raw_request(server, {"text_input": as_bytes(b"Who?"), "history": as_bytes(*elements)})
    assert named in json.loads(message[message.index("{") :])["message"]
    assert '"type": "InvalidRequest"' in message
    assert client.generate("Who?", ["Mara Tolen."], max_tokens=4).token_ids == before


SPANS = np.array([[0, 0, 5]], np.int32)
WEIGHTS = np.ones(1, np.float32)


@pytest.mark.parametrize(
    "inputs, named",
    [
        ({"num_passages": np.array([2**31 - 1], np.int32)}, "num_passages is 2147483647; allowed is 0 to 4194304"),
        ({"chunk_weights": np.ones(2, np.float32)}, "chunk_weights has 2 weights for the 1 rows"),
        ({"chunk_weights": np.array([np.nan], np.float32)}, "chunk_weights must be finite"),
        ({"chunk_spans": np.array([[-1, 0, 5]], np.int32)}, "chunk_spans holds negative numbers"),
        ({"expanded_chunks": np.array([0, 7], np.int32)}, "expanded_chunks ranges from 0 to 7; chunk_spans has 1 rows"),
        ({"expanded_chunks": np.array([-1], np.int32)}, "expanded_chunks ranges from -1 to -1"),
    ],
)
def test_the_decoder_called_alone_refuses_places_that_contradict_each_other(server, inputs, named):
    prompt = {"input_ids": np.array([5, 6], np.int32), "chunk_spans": SPANS, "chunk_weights": WEIGHTS, **inputs}
    types = {"int32": "INT32", "float32": "FP32"}
    (message,) = raw_request(
        server, {name: (array, types[array.dtype.name]) for name, array in prompt.items()}, model="decoder"
    )
    assert named in message
