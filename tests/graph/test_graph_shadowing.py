"""A share of the requests is answered a second time, and the metrics say what the evaluation would."""

import re
import urllib.request

import pytest
from test_graph_engine import read_metric, wait_for_metric

from refrag.request import ExpansionOptions, Request
from refrag.teacher_forcing.distribution import TopDistribution
from refrag.teacher_forcing.fidelity import compare_with_plain
from refrag.teacher_forcing.prompt_reader import PromptReader
from refrag_client import InvalidRequest

pytestmark = pytest.mark.server

MAX_TOKENS, NUM_QUESTIONS = 8, 6
DIVERGENCE, AGREEMENT = "refrag_shadow_divergence", "refrag_shadow_agreement"
# The last of a comparison's metrics to be told.
LAST_COUNT = "refrag_shadow_first_divergence_count"


def mixed_prompt(reference, request):
    context = reference.prepare(request, MAX_TOKENS)
    vectors, question_vectors = reference.encode(context)
    selection = reference.select(request.expansion, context, vectors, question_vectors)
    return reference.build_prompt(context, selection.numbers, vectors)[1]


def evaluate(reference, question, passages):
    """Return the fidelity as the evaluation measures it."""
    decoder = reference.checkpoint.decoder
    plain = PromptReader(decoder, mixed_prompt(reference, Request(question, passages, ExpansionOptions(1.0))))
    mixed = PromptReader(decoder, mixed_prompt(reference, Request(question, passages, ExpansionOptions(0.1))))
    token_ids, end_id = plain.answer(MAX_TOKENS)
    whole = token_ids if end_id is None else [*token_ids, end_id]
    return compare_with_plain(TopDistribution.of(plain.logits(whole)), mixed.logits(whole))


def test_the_metrics_say_what_the_evaluation_measures_on_the_same_requests(client, server, reference, heldout):
    asked = [(context.questions[0].text, context.passages) for context in heldout[:NUM_QUESTIONS]]
    names = [f"{name}_{part}" for name in (DIVERGENCE, AGREEMENT) for part in ("count", "sum")]
    before = {name: read_metric(server, name) for name in (*names, LAST_COUNT)}
    for question, passages in asked:
        client.generate(question, passages, expand_fraction=0.1, max_tokens=MAX_TOKENS, shadow_fraction=1)
    wait_for_metric(server, LAST_COUNT, before[LAST_COUNT] + NUM_QUESTIONS)
    added = {name: read_metric(server, name) - before[name] for name in names}
    expected = [evaluate(reference, *one) for one in asked]
    assert added[f"{DIVERGENCE}_count"] == added[f"{AGREEMENT}_count"] == NUM_QUESTIONS
    assert added[f"{AGREEMENT}_sum"] == pytest.approx(sum(one.agreement for one in expected), abs=1e-4)
    assert added[f"{DIVERGENCE}_sum"] == pytest.approx(sum(one.divergence for one in expected), rel=1e-3)
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as response:
        labels = re.findall(rf"{AGREEMENT}_count{{(.*)}}", response.read().decode())
    assert any('policy="learned"' in one and 'expanded="0.1"' in one for one in labels)


def test_nobody_is_shadowed_unasked_and_plain_answers_never_are(client, server, heldout):
    before = read_metric(server, f"{AGREEMENT}_count")
    context = heldout[0]
    client.generate(context.questions[0].text, context.passages, max_tokens=4)
    client.generate(context.questions[0].text, context.passages, max_tokens=4, expand_fraction=1, shadow_fraction=1)
    # Comparisons are made in order, so that this one comes after any of the two above.
    client.generate(context.questions[0].text, context.passages, max_tokens=4, expand_fraction=0, shadow_fraction=1)
    wait_for_metric(server, f"{AGREEMENT}_count", before + 1)
    assert read_metric(server, f"{AGREEMENT}_count") == before + 1


def test_a_plain_prompt_beyond_the_window_is_counted_as_skipped(client, server):
    before = read_metric(server, "refrag_shadow_skipped")
    passages = ["Mara Tolen keeps a parrot in the old mill by the river."] * 400
    client.generate("What does Mara Tolen keep?", passages, expand_fraction=0, max_tokens=4, shadow_fraction=1)
    wait_for_metric(server, "refrag_shadow_skipped", before + 1)


def test_callers_are_computed_as_if_nobody_was_shadowed(client, server, reference, heldout):
    asked = [(context.questions[0].text, context.passages) for context in heldout[:NUM_QUESTIONS]]
    unshadowed = [client.generate(*one, expand_fraction=0.1, max_tokens=MAX_TOKENS).token_ids for one in asked]
    shadowed = [
        client.generate(*one, expand_fraction=0.1, max_tokens=MAX_TOKENS, shadow_fraction=1).token_ids for one in asked
    ]
    assert shadowed == unshadowed


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(client, fraction):
    with pytest.raises(InvalidRequest, match=r"shadow_fraction is .*; allowed is 0"):
        client.generate("What does Mara Tolen keep?", shadow_fraction=fraction)
