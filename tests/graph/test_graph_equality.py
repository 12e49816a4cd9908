"""The served ensemble gives the tokens of the in-process reference."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from refrag.request import ExpansionOptions, Request, SamplingParams

pytestmark = pytest.mark.server

MAX_TOKENS = 12


@pytest.mark.parametrize(
    "policy, expand_fraction",
    [
        ("learned", 0),
        ("learned", 0.1),
        ("learned", 0.5),
        ("learned", 1),
        ("similarity", 0.1),
        ("neighbourhood", 0.1),
        ("attention", 0.1),
        ("attention", 0.5),
        ("none", 0.1),
        ("all", 0.1),
    ],
)
def test_served_tokens_equal_the_reference_on_fifty_heldout_questions(
    client, reference, heldout, policy, expand_fraction
):
    for context in heldout:
        question, options = context.questions[0].text, {"policy": policy, "expand_fraction": expand_fraction}
        request = Request(question, context.passages, ExpansionOptions(**options))
        expected = reference.answer(request, SamplingParams(MAX_TOKENS))
        served = client.generate(question, context.passages, **options, max_tokens=MAX_TOKENS)
        assert list(served.token_ids) == expected.token_ids
        assert list(served.statistics.expanded_chunks) == expected.expanded
        assert served.statistics.prompt_slots == expected.prompt.num_slots
        assert (served.text, served.finish_reason) == (expected.text, expected.finish_reason)
        assert [(cited.passage, cited.start, cited.end) for cited in served.citations] == [
            tuple(row) for row in expected.citations.tolist()
        ]
        assert served.passage_weights == pytest.approx(expected.passage_weights.tolist(), abs=1e-3)


def test_expanding_everything_equals_hugging_face_generate_on_the_plain_text(client, demo_checkpoint, heldout):
    tokenizer, template = demo_checkpoint.decoder_tokenizer, demo_checkpoint.config.template
    decoder = demo_checkpoint.decoder
    for context in heldout:
        passages = [template.passage_prefix + passage + template.passage_suffix for passage in context.passages]
        question = context.questions[0].text
        text = "".join(passages) + template.question_prefix + question + template.answer_prefix
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
        plain = decoder.backbone.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
        )
        served = client.generate(question, context.passages, expand_fraction=1, max_tokens=MAX_TOKENS)
        expected = [i for i in plain[0, ids.shape[1] :].tolist() if i not in decoder.eos_ids]
        assert list(served.token_ids) == expected


@pytest.mark.parametrize("expand_fraction", [None, 0.3])
def test_a_limit_of_slots_holds_and_is_used_where_no_fraction_is_given(client, reference, heldout, expand_fraction):
    for context in heldout[:10]:
        question, limit = context.questions[0].text, 200
        request = Request(question, context.passages, ExpansionOptions(expand_fraction or 1.0, max_prompt_slots=limit))
        expected = reference.answer(request, SamplingParams(MAX_TOKENS))
        options = {"expand_fraction": expand_fraction, "max_prompt_slots": limit, "max_tokens": MAX_TOKENS}
        served = client.generate(question, context.passages, **options)
        assert served.statistics.prompt_slots == expected.prompt.num_slots <= limit
        assert list(served.token_ids) == expected.token_ids


@pytest.mark.parametrize("expand_fraction", [0.0, 0.1])
@pytest.mark.parametrize("policy", ["learned", "similarity", "neighbourhood", "attention"])
def test_a_raised_budget_equals_the_reference(client, reference, heldout, policy, expand_fraction):
    raised = 0
    for context in heldout[:8]:
        question, options = context.questions[0].text, {"policy": policy, "expand_fraction": expand_fraction}
        request = Request(question, context.passages, ExpansionOptions(**options, min_confidence=0.7))
        expected = reference.answer(request, SamplingParams(MAX_TOKENS))
        usual = client.generate(question, context.passages, **options, max_tokens=MAX_TOKENS)
        served = client.generate(question, context.passages, **options, min_confidence=0.7, max_tokens=MAX_TOKENS)
        assert list(served.statistics.expanded_chunks) == expected.expanded
        assert list(served.token_ids) == expected.token_ids
        assert set(usual.statistics.expanded_chunks) <= set(expected.expanded)
        assert served.statistics.chunk_budget == int(expand_fraction * served.statistics.num_chunks)
        assert not usual.statistics.is_raised
        raised += served.statistics.is_raised
    assert raised


def test_attention_of_tokens_that_nobody_sees_equals_the_reference(client, reference, heldout):
    for context in heldout[:10]:
        question, options = context.questions[0].text, {"policy": "attention", "expand_fraction": 0.3}
        request = Request(question, context.passages, ExpansionOptions(**options, sense_tokens=3))
        expected = reference.answer(request, SamplingParams(MAX_TOKENS))
        served = client.generate(question, context.passages, **options, sense_tokens=3, max_tokens=MAX_TOKENS)
        assert list(served.statistics.expanded_chunks) == expected.expanded
        assert list(served.token_ids) == expected.token_ids


def test_the_random_policy_picks_by_the_seed_that_was_sent(client, reference, heldout):
    context = heldout[11]
    request = Request(context.questions[0].text, context.passages, ExpansionOptions(0.3, "random", 5))
    expected = reference.answer(request, SamplingParams(MAX_TOKENS, seed=5))
    served = client.generate(
        request.question, request.passages, expand_fraction=0.3, policy="random", seed=5, max_tokens=MAX_TOKENS
    )
    assert list(served.statistics.expanded_chunks) == expected.expanded
    assert list(served.token_ids) == expected.token_ids


def test_a_sampled_answer_equals_the_reference_with_the_same_seed(client, reference):
    sampling = SamplingParams(MAX_TOKENS, temperature=1.5, top_k=50, top_p=0.95, seed=2**63 + 11)
    expected = reference.answer(Request("Who keeps a parrot?", ["Mara keeps a parrot."]), sampling)
    served = client.generate(
        "Who keeps a parrot?",
        ["Mara keeps a parrot."],
        max_tokens=MAX_TOKENS,
        temperature=1.5,
        top_k=50,
        top_p=0.95,
        seed=2**63 + 11,
    )
    assert list(served.token_ids) == expected.token_ids


def test_an_unstreamed_answer_equals_the_streamed_one(client, heldout):
    question, passages = heldout[5].questions[0].text, heldout[5].passages
    options = {"max_tokens": MAX_TOKENS, "temperature": 1.2, "seed": 3}
    streamed = client.generate(question, passages, **options)
    whole = client.generate(question, passages, stream=False, **options)
    assert (whole.text, whole.token_ids) == (streamed.text, streamed.token_ids)


def test_stop_words_end_the_answer_as_in_the_reference(client, reference):
    request = Request("What does Mara keep?", ["Mara keeps a parrot."])
    whole = reference.answer(request, SamplingParams(MAX_TOKENS, temperature=2.0, seed=1)).text
    assert len(whole) > 8
    word = whole[4:7]
    sampling = SamplingParams(MAX_TOKENS, temperature=2.0, seed=1, stop_words=(word,))
    served = client.generate(
        request.question, request.passages, max_tokens=MAX_TOKENS, temperature=2.0, seed=1, stop_words=[word]
    )
    assert served.text == reference.answer(request, sampling).text
    assert word not in served.text
    assert served.finish_reason == "stop"


def test_thirty_two_concurrent_streams_equal_their_solo_runs(client, heldout):
    def ask(index):
        context = heldout[index]
        return client.generate(
            context.questions[0].text,
            context.passages,
            expand_fraction=[0, 0.1, 0.5, 1][index % 4],
            max_tokens=MAX_TOKENS,
            temperature=0.7,
            seed=index,
        ).token_ids

    alone = [ask(index) for index in range(32)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == alone
