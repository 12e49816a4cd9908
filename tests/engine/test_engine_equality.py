"""Whatever the engine does to be fast, its answers are those of the slow, obvious way."""

import pytest
import torch
from engine_helpers import (
    GREEDY,
    SAMPLED,
    answer_alone,
    make_engine,
    make_prompt,
    make_request,
    mixed_requests,
    run,
    run_unchecked,
    scatter_blocks,
)
from transformers import GenerationConfig

from refrag.engine import linear
from refrag.request import SamplingParams


def test_batched_is_alone(decoder, tokenizer):
    requests = mixed_requests(10)
    together = run(make_engine(decoder, tokenizer), requests, per_step=2)
    assert together == [answer_alone(decoder, tokenizer, request) for request in requests]


def test_whole_prompts_in_one_step_are_each_alone(decoder, tokenizer):
    """Each prompt is computed in a run of its own, long enough to be written as a whole."""
    requests = [make_request(make_prompt(num_slots), SAMPLED) for num_slots in (40, 50, 60)]
    together = run(make_engine(decoder, tokenizer, max_step_slots=512), requests, per_step=3)
    assert together == [answer_alone(decoder, tokenizer, request) for request in requests]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_engine_is_hugging_faces_generate(decoder, tokenizer, sampling):
    prompt = make_prompt(40)
    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens, do_sample=sampling.temperature > 0, eos_token_id=2, pad_token_id=0
    )
    if sampling.temperature:
        config.temperature, config.top_k, config.top_p = sampling.temperature, sampling.top_k, sampling.top_p
        torch.manual_seed(sampling.seed)
    embeddings = decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings).unsqueeze(0)
    expected = decoder.backbone.generate(inputs_embeds=embeddings, generation_config=config)[0]
    [answer] = run(make_engine(decoder, tokenizer), [make_request(prompt, sampling)])
    assert answer.token_ids == expected[expected != 2].tolist()


@pytest.mark.parametrize("max_step_slots", [1, 5, 16, 33])
def test_a_prompt_in_parts_is_the_whole_prompt(decoder, tokenizer, max_step_slots):
    request = make_request(make_prompt(70), SAMPLED)
    [whole] = run(make_engine(decoder, tokenizer, max_step_slots=512), [request])
    [in_parts] = run(make_engine(decoder, tokenizer, max_step_slots=max_step_slots), [request])
    assert in_parts == whole


def test_a_reused_prefix_is_a_fresh_one(decoder, tokenizer):
    """The second prompt shares its first five blocks, which hold embeddings too, with the first prompt."""
    first, other = make_prompt(60), make_prompt(60, seed=1, num_rows=0)
    shared = torch.cat([first.input_ids[:41], other.input_ids[41:]])
    second = type(first)(shared, first.chunk_embeddings)
    engine = make_engine(decoder, tokenizer)
    run(engine, [make_request(first)])
    engine.add(request := make_request(second))
    engine.step()
    assert engine.stats.num_reused_slots == 40
    engine.cancel(request)
    [reused] = run(engine, [make_request(second)])
    [fresh] = run(make_engine(decoder, tokenizer), [make_request(second)])
    assert reused == fresh != answer_alone(decoder, tokenizer, make_request(first))


def test_the_same_prompt_again_computes_its_last_slots_only(llama, tokenizer):
    prompt = make_prompt(64)
    engine = make_engine(llama, tokenizer)
    first = run(engine, [make_request(prompt)])
    engine.add(request := make_request(prompt))
    engine.step()
    assert (engine.stats.num_reused_slots, engine.stats.num_computed_slots) == (56, 8)
    engine.cancel(request)
    assert run(engine, [make_request(prompt)]) == first


def test_other_embeddings_are_another_prefix(llama, tokenizer):
    """The ids are the same; only the content of a row differs."""
    prompt = make_prompt(40)
    other = type(prompt)(prompt.input_ids, prompt.chunk_embeddings + 0.5)
    engine = make_engine(llama, tokenizer)
    [first] = run(engine, [make_request(prompt)])
    [second] = run(engine, [make_request(other)])
    assert second == answer_alone(llama, tokenizer, make_request(other)) != first


def test_preempted_is_undisturbed(decoder, tokenizer):
    """Requests of low priority lose their place halfway through their answers and go on where they were."""
    low = [make_request(make_prompt(50, number), SAMPLED, priority=1) for number in range(3)]
    high = [make_request(make_prompt(60, number), GREEDY, priority=0) for number in range(3)]
    engine = make_engine(decoder, tokenizer, max_active=3)
    deltas = {request: [] for request in (*low, *high)}
    for request in low:
        engine.add(request)
    num_preempted = 0
    while engine.has_work:
        for output in engine.step():
            deltas[output.request] += output.delta.token_ids
        engine.check_integrity()
        num_preempted += engine.stats.num_preempted
        while high and all(len(deltas[request]) >= 4 for request in low):
            engine.add(high.pop())
    assert num_preempted == 3
    assert [deltas[request] for request in deltas] == [
        answer_alone(decoder, tokenizer, request).token_ids for request in deltas
    ]


def test_blocks_apart_are_blocks_together(decoder, tokenizer):
    engine = make_engine(decoder, tokenizer)
    scatter_blocks(engine)
    request = make_request(make_prompt(75), SAMPLED)
    assert run_unchecked(engine, request) == answer_alone(decoder, tokenizer, request).token_ids


def test_a_request_has_its_own_penalties_and_log_probabilities(llama, tokenizer):
    options = [
        SamplingParams(max_tokens=8, repetition_penalty=1.7),
        SamplingParams(max_tokens=8, min_tokens=8, temperature=1.3, seed=1),
        SamplingParams(max_tokens=8, log_probabilities=True),
    ]
    requests = [make_request(make_prompt(20), sampling) for sampling in options]
    answers = run(make_engine(llama, tokenizer), requests)
    assert answers == [answer_alone(llama, tokenizer, request) for request in requests]
    assert [len(answer.log_probabilities) for answer in answers] == [0, 0, len(answers[2].token_ids)]
    assert all(value < 0 for value in answers[2].log_probabilities)


@pytest.mark.parametrize("packed_from", [linear.PACKED, 1], ids=["as they lie", "packed"])
def test_single_precision_answers_too(llama, tokenizer, monkeypatch, packed_from):
    """Served decoders are in single precision, where sums in another order may differ in their last bits."""
    monkeypatch.setattr(linear, "PACKED", packed_from)
    single = type(llama)(type(llama.backbone)(llama.backbone.config).eval())
    single.load_state_dict(llama.state_dict())
    requests = mixed_requests(6)
    expected = [answer_alone(single, tokenizer, request) for request in requests]
    engine = make_engine(single, tokenizer)
    assert isinstance(single.backbone.lm_head, linear.PackedLinear) == (packed_from == 1)
    assert run(engine, requests, per_step=1) == expected
