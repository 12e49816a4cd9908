"""The engine's own features work through the whole ensemble."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from served_metrics import read_metric, wait_for_metric

from refrag.request import Request, SamplingParams
from refrag_client import InvalidRequest

pytestmark = pytest.mark.server

QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot."] * 20


def test_penalties_and_least_lengths_are_those_of_the_reference(client, reference):
    sampling = SamplingParams(max_tokens=20, repetition_penalty=1.5, min_tokens=20)
    expected = reference.answer(Request(QUESTION, PASSAGES[:3]), sampling)
    served = client.generate(QUESTION, PASSAGES[:3], max_tokens=20, repetition_penalty=1.5, min_tokens=20)
    assert list(served.token_ids) == expected.token_ids
    assert len(served.token_ids) == 20


def test_log_probabilities_come_when_asked_for(client):
    asked = client.generate(QUESTION, PASSAGES, max_tokens=8, min_tokens=4, log_probs=True)
    assert len(asked.log_probs) == len(asked.token_ids) >= 4
    assert all(value <= 0 for value in asked.log_probs)
    assert client.generate(QUESTION, PASSAGES, max_tokens=8).log_probs == ()


def test_the_time_that_sensing_takes_is_a_metric_of_its_own(client, server):
    before = read_metric(server, "refrag_sensing_seconds_count")
    answer = client.generate(QUESTION, PASSAGES, policy="attention", expand_fraction=0.2)
    assert answer.statistics.num_expanded_chunks == answer.statistics.num_chunks // 5 > 0
    wait_for_metric(server, "refrag_sensing_seconds_count", before + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9; allowed is 0 to max_tokens, which is 8"),
    ],
)
def test_bad_options_are_refused_by_name(client, options, message):
    with pytest.raises(InvalidRequest, match=message):
        client.generate(QUESTION, PASSAGES, **options)


def test_the_same_passages_again_reuse_their_slots(client, server):
    """The second question differs, the passages before it do not."""
    options = {"expand_fraction": 1, "max_tokens": 2}
    first = client.generate(QUESTION, PASSAGES, **options)
    before = read_metric(server, "refrag_reused_slots")
    client.generate("Who keeps a parrot?", PASSAGES, **options)
    shared = first.statistics.context_tokens // 16 * 16
    wait_for_metric(server, "refrag_reused_slots", before + shared)


def test_the_decoder_tells_its_latencies(client, server):
    names = [f"refrag_{name}_seconds_count" for name in ("ttft", "queue", "inter_token")]
    before = [read_metric(server, name) for name in names]
    answer = client.generate(QUESTION, PASSAGES, max_tokens=5, min_tokens=5)
    for name, value, count in zip(names, before, (1, 1, len(answer.token_ids) - 1), strict=True):
        wait_for_metric(server, name, value + count)
    assert read_metric(server, "refrag_kv_blocks") > 0


def test_urgent_requests_are_answered_beside_patient_ones(client, reference, heldout):
    """There are more requests than places, of mixed priority; each answer is that of the reference alone."""
    contexts = [heldout[index % len(heldout)] for index in range(40)]

    def ask(index):
        context = contexts[index]
        question = context.questions[0].text
        return client.generate(question, context.passages, max_tokens=8, priority=index % 3)

    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(ask, range(40)))
    for context, answer in zip(contexts, answers, strict=True):
        request = Request(context.questions[0].text, context.passages)
        assert list(answer.token_ids) == reference.answer(request, SamplingParams(8)).token_ids
