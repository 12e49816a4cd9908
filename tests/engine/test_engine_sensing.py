"""Sensing by attention: what the engine reads equals what transformers tells, and what it answers what it chose."""

import random

import numpy as np
import pytest
import torch
from engine_helpers import (
    ARCHITECTURES,
    BLOCK_SIZE,
    GREEDY,
    SAMPLED,
    VOCAB_SIZE,
    WIDTH,
    WINDOW,
    answer_alone,
    make_decoder,
    make_prompt,
    make_request,
    mixed_requests,
    run,
)
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from refrag.context.chunking import PackedChunks
from refrag.decoders.base import ChunksToSense, MixedPrompt, join_deltas
from refrag.engine.block_pool import BlockPool
from refrag.engine.engine import Engine
from refrag.engine.request import EngineRequest
from refrag.engine.sensing import Senses, Sensing, expand_in_place
from refrag.engine.settings import EngineSettings
from refrag.errors import InvalidRequest
from refrag.model.attention_heads import AttentionHeads, Scoring
from refrag.model.attention_weights import read_attention
from refrag.model.decoder import Decoder
from refrag.policies.base import Candidates, ChunkAttention
from refrag.policies.select import select_chunks
from refrag.prompt import lay_out_prompt
from refrag.request import Fallback

CHUNK_SIZE, NULL_IDS, HEAD_IDS = 4, [7, 11, 13, 17, 19], [1, 5, 6]
FAMILIES = ["llama", "qwen3", "gemma2", "gpt_neox"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    if request.param in ARCHITECTURES:
        return make_decoder(request.param)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        initializer_range=0.3,
        eos_token_id=2,
    )
    return Decoder(AutoModelForCausalLM.from_config(config).eval().double())


def make_sensed(
    num_chunks=20, num_question=9, budget=3, seed=0, num_tokens=0, sampling=GREEDY, fallback=None, **options
):
    """Make a request whose chunks are all compressed, short last chunks of passages among them."""
    rng = np.random.default_rng(seed)
    passages = [rng.integers(3, VOCAB_SIZE, int(count)) for count in rng.integers(5, 12, num_chunks)]
    chunks = PackedChunks.cut(passages, CHUNK_SIZE)[:num_chunks]
    question_ids = np.random.default_rng(1000 + seed).integers(3, VOCAB_SIZE, num_question).tolist()
    prompt = lay_out_prompt(chunks, [], question_ids, VOCAB_SIZE, HEAD_IDS)
    embeddings = 0.3 * torch.randn(num_chunks, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    to_sense = ChunksToSense(
        "attention", budget, chunks.token_ids, chunks.passages, rng.random(num_chunks), num_tokens, fallback
    )
    mixed = MixedPrompt(torch.from_numpy(prompt.input_ids).long(), embeddings)
    return EngineRequest(mixed, sampling, to_sense=to_sense, **options)


def make_senses(decoder, query_slots=64, **heads):
    default = AttentionHeads.default(decoder)
    chosen = heads or {"heads": default.heads, "weights": default.weights}
    return Senses(AttentionHeads(**chosen, scoring=Scoring(query_slots)), NULL_IDS)


def make_sensing_engine(decoder, tokenizer, senses=None, **settings):
    defaults = {"kv_cache_mib": 8, "block_size": BLOCK_SIZE, "max_step_slots": 24, "max_whole_slots": 1}
    return Engine(
        decoder, tokenizer, WINDOW, EngineSettings(**{**defaults, **settings}), senses=senses or make_senses(decoder)
    )


def choose_in_process(decoder, request, senses):
    chunks, prompt = request.to_sense, request.prompt
    read = read_attention(decoder, prompt.input_ids, prompt.chunk_embeddings, NULL_IDS, senses.heads, chunks.num_tokens)
    attention = ChunkAttention(*read, np.array(senses.heads.weights), chunks.similarities, senses.heads.scoring)
    nothing = torch.zeros(0, 0)
    selection = select_chunks(
        chunks.policy,
        Candidates(chunks.passages, nothing, nothing, attention=attention),
        chunks.budget,
        chunks.fallback,
    )
    expanded = list(selection.numbers)
    return expanded, expand_in_place(prompt, chunks.token_ids, expanded, VOCAB_SIZE)


def answer_in_process(decoder, tokenizer, request, senses):
    expanded, prompt = choose_in_process(decoder, request, senses)
    return expanded, answer_alone(decoder, tokenizer, make_request(prompt, request.sampling))


def run_sensing(engine, requests):
    """Return each request's choice, None for one without, and its joined answer."""
    choices, deltas = dict.fromkeys(requests), {request: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            if output.choice is not None:
                assert choices[output.request] is None and not deltas[output.request], "chosen twice, or too late"
                choices[output.request] = output.choice
            if output.delta is not None:
                deltas[output.request].append(output.delta)
        engine.check_integrity()
    assert engine.pool.num_available == engine.pool.num_blocks
    return [(choices[request], join_deltas(deltas[request])) for request in requests]


def read_by_engine(engine, request, monkeypatch):
    """Return the weights that the engine reads, of the question's rows and of the null question's."""
    read = []
    choose = Sensing.choose

    def note(sensing):
        read.append((sensing.question.weights(), sensing.null.weights()))
        return choose(sensing)

    monkeypatch.setattr(Sensing, "choose", note)
    run_sensing(engine, [request])
    [weights] = read
    return weights


@torch.inference_mode()
def weights_of_transformers(decoder, request, question_ids, heads):
    """Return what `output_attentions` tells, for the whole prompt at once."""
    context = request.prompt.input_ids[: len(HEAD_IDS) + len(request.prompt.chunk_embeddings)]
    ids = torch.cat([context, torch.tensor(question_ids)])
    embedded = decoder.embed_prompt(ids, request.prompt.chunk_embeddings)
    usual = decoder.config._attn_implementation
    decoder.backbone.set_attn_implementation("eager")
    try:
        layers = decoder.backbone(inputs_embeds=embedded.unsqueeze(0), output_attentions=True).attentions
    finally:
        decoder.backbone.set_attn_implementation(usual)
    return np.stack(
        [layers[layer][0, head, len(context) :, len(HEAD_IDS) : len(context)].mean(0) for layer, head in heads]
    )


@pytest.mark.parametrize("max_step_slots", [7, 512])
def test_what_the_engine_reads_equals_what_transformers_tells(family, tokenizer, monkeypatch, max_step_slots):
    """Every head of all layers is compared, the last one's too, with the prompt computed at once and in parts."""
    shape = family.config
    heads = tuple((layer, head) for layer in range(shape.num_hidden_layers) for head in range(4))
    request, senses = make_sensed(), make_senses(family, heads=heads, weights=(1.0,) * len(heads))
    engine = make_sensing_engine(family, tokenizer, senses, max_step_slots=max_step_slots)
    question, null = read_by_engine(engine, request, monkeypatch)
    question_ids = request.prompt.input_ids[-9:].tolist()
    assert question == pytest.approx(weights_of_transformers(family, request, question_ids, heads), abs=1e-6)
    assert null == pytest.approx(weights_of_transformers(family, request, NULL_IDS, heads), abs=1e-6)


@pytest.mark.parametrize("num_tokens", [0, 3])
@pytest.mark.parametrize("query_slots", [4, 64])
def test_the_reference_in_process_reads_the_same(family, tokenizer, monkeypatch, num_tokens, query_slots):
    request, senses = make_sensed(num_tokens=num_tokens), make_senses(family, query_slots)
    read = read_by_engine(make_sensing_engine(family, tokenizer, senses), request, monkeypatch)
    prompt = request.prompt
    expected = read_attention(family, prompt.input_ids, prompt.chunk_embeddings, NULL_IDS, senses.heads, num_tokens)
    for found, wanted in zip(read, expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)


def test_the_answer_is_that_of_the_chunks_chosen_expanded_in_place(family, tokenizer):
    requests = [make_sensed(seed=seed, num_tokens=seed % 3, sampling=(GREEDY, SAMPLED)[seed % 2]) for seed in range(6)]
    senses = make_senses(family)
    for request in requests:
        [(choice, answer)] = run_sensing(make_sensing_engine(family, tokenizer, senses), [request])
        expanded, expected = answer_in_process(family, tokenizer, request, senses)
        assert (choice.expanded, answer) == (expanded, expected)
        assert len(choice.expanded) == request.to_sense.budget
        assert choice.num_slots <= len(request.prompt.input_ids) + request.to_sense.most_added_slots
        assert choice.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("budget", [0, 3])
@pytest.mark.parametrize(("min_confidence", "raised"), [(0.5, 20), (1.0, 20), (1.0, 7)])
def test_a_choice_that_is_not_sure_is_raised_as_far_as_there_is_room(llama, tokenizer, budget, min_confidence, raised):
    request = make_sensed(budget=budget, fallback=Fallback(min_confidence, raised))
    senses = make_senses(llama)
    [(choice, answer)] = run_sensing(make_sensing_engine(llama, tokenizer, senses), [request])
    assert (choice.expanded, answer) == answer_in_process(llama, tokenizer, request, senses)
    assert budget < len(choice.expanded) <= raised
    assert choice.num_slots <= len(request.prompt.input_ids) + request.to_sense.most_added_slots
    if raised == 20:
        assert choice.weights[choice.expanded].sum() >= min_confidence - 1e-5


def test_sensing_among_other_requests_changes_nobody(llama, tokenizer):
    rng, senses = random.Random(0), make_senses(llama)
    sensed = [make_sensed(seed=seed % 4, num_tokens=seed % 3, budget=1 + seed % 5) for seed in range(8)]
    requests = [*sensed, *mixed_requests(8)]
    rng.shuffle(requests)
    for request, (choice, answer) in zip(
        requests, run_sensing(make_sensing_engine(llama, tokenizer, senses), requests), strict=True
    ):
        if request.to_sense is None:
            assert (choice, answer) == (None, answer_alone(llama, tokenizer, request))
        else:
            assert (choice.expanded, answer) == answer_in_process(llama, tokenizer, request, senses)


def test_the_same_context_under_another_question_is_not_computed_again(llama, tokenizer):
    engine = make_sensing_engine(llama, tokenizer, max_step_slots=512)
    first, second = make_sensed(num_chunks=40, seed=3), make_sensed(num_chunks=40, seed=3, num_question=14)
    run_sensing(engine, [first])
    engine.add(second)
    engine.step()
    assert engine.stats.num_reused_slots >= 40
    senses = engine.senses
    engine.cancel(second)
    [(choice, answer)] = run_sensing(engine, [second])
    assert (choice.expanded, answer) == answer_in_process(llama, tokenizer, second, senses)


def test_what_stands_before_the_first_expanded_chunk_is_not_computed_again(llama, tokenizer):
    """One chunk of forty, near the end by its similarity: most blocks of the compressed prompt stay."""
    request = make_sensed(num_chunks=40, budget=1)
    chunks = request.to_sense
    scoring = Scoring(similarity=1.0)
    similar = np.zeros(40)
    similar[37] = 1.0
    chunks = ChunksToSense(chunks.policy, 1, chunks.token_ids, chunks.passages, similar)
    request = EngineRequest(request.prompt, GREEDY, to_sense=chunks)
    heads = AttentionHeads.default(llama)
    engine = make_sensing_engine(
        llama, tokenizer, Senses(AttentionHeads(heads.heads, heads.weights, scoring), NULL_IDS), max_step_slots=512
    )
    engine.add(request)
    num_reused = []
    while not any(output.delta for output in engine.step()):
        num_reused.append(engine.stats.num_reused_slots)
    num_reused.append(engine.stats.num_reused_slots)
    before_question = (len(HEAD_IDS) + 40) // BLOCK_SIZE * BLOCK_SIZE
    before_chunk = (len(HEAD_IDS) + 37) // BLOCK_SIZE * BLOCK_SIZE
    assert [count for count in num_reused if count] == [before_question, before_chunk]


def test_an_urgent_request_preempts_sensing_which_then_reads_every_row_once(llama, tokenizer):
    senses = make_senses(llama)
    sensed, urgent = make_sensed(num_chunks=60, num_question=30), make_request(make_prompt(40), priority=-1)
    engine = make_sensing_engine(llama, tokenizer, senses, max_active=1, max_step_slots=16)
    engine.add(sensed)
    # Up to the middle of the null question, then of the question.
    answers, num_preempted = {sensed: [], urgent: []}, 0
    choices = []
    for _ in range(5):
        engine.step()
    engine.add(urgent)
    while engine.has_work:
        for output in engine.step():
            if output.choice is not None:
                choices.append(output.choice.expanded)
            if output.delta is not None:
                answers[output.request].append(output.delta)
        num_preempted += engine.stats.num_preempted
        engine.check_integrity()
    expanded, expected = answer_in_process(llama, tokenizer, sensed, senses)
    assert (num_preempted, choices, join_deltas(answers[sensed])) == (1, [expanded], expected)
    assert join_deltas(answers[urgent]) == answer_alone(llama, tokenizer, urgent)


def test_a_request_that_is_left_while_it_senses_leaves_nothing_behind(llama, tokenizer):
    engine = make_sensing_engine(llama, tokenizer)
    for num_steps in range(6):
        engine.add(request := make_sensed(seed=num_steps))
        for _ in range(num_steps):
            engine.step()
        engine.cancel(request)
        engine.check_integrity()
    assert engine.pool.num_available == engine.pool.num_blocks


def test_the_time_until_the_choice_is_told(llama, tokenizer):
    engine = make_sensing_engine(llama, tokenizer, max_step_slots=512)
    now = 10.0
    engine.clock = lambda: now
    engine.add(make_sensed())
    told = []
    while engine.has_work:
        engine.step()
        told += engine.stats.sensing_seconds
        now += 0.5
    # One step for the null question, one for the question, and the choice at its end.
    assert told == [0.5]


def test_an_engine_without_senses_refuses_the_policy_by_name(llama, tokenizer):
    engine = Engine(llama, tokenizer, WINDOW, EngineSettings(kv_cache_mib=8, block_size=BLOCK_SIZE))
    with pytest.raises(InvalidRequest, match="policy 'attention' needs the attention of a decoder that shows it"):
        engine.check(make_sensed())


def test_sensing_ends_with_the_window(llama, tokenizer):
    """A decoder has no positions beyond it; in its neighbours of the same pass they would change the others."""
    request = make_sensed(num_tokens=16)
    window = len(request.prompt.input_ids) + 4
    sensing = Sensing(request.prompt, request.to_sense, make_senses(llama), VOCAB_SIZE, window)
    sensing.current = sensing.question
    assert [sensing.reads_on(token_id, ()) for token_id in range(3, 9)] == [True] * 4 + [False] * 2


def test_a_window_without_room_for_the_null_question_is_told(llama, tokenizer):
    request = make_sensed(num_chunks=WINDOW - 4, num_question=1, budget=0)
    assert len(request.prompt.input_ids) <= WINDOW
    engine = make_sensing_engine(llama, tokenizer)
    for num_blocks in (engine.pool.num_blocks, WINDOW // BLOCK_SIZE):
        engine.pool = BlockPool(num_blocks, BLOCK_SIZE)
        with pytest.raises(InvalidRequest, match=f"to ask a question of its own, the decoder's window is {WINDOW}"):
            engine.check(request)


def test_a_cache_as_large_as_the_window_holds_tokens_to_sense_that_the_window_cuts_off(llama, tokenizer):
    request = make_sensed(num_chunks=WINDOW - 64, num_tokens=64)
    assert len(request.prompt.input_ids) + 64 > WINDOW
    engine = make_sensing_engine(llama, tokenizer)
    engine.pool = engine.scheduler.pool = BlockPool(WINDOW // BLOCK_SIZE, BLOCK_SIZE)
    engine.add(request)
    while engine.has_work:
        assert [output.error for output in engine.step() if output.error] == []
        engine.check_integrity()


def test_a_request_too_large_once_expanded_is_refused_before_it_is_computed(llama, tokenizer):
    engine = make_sensing_engine(llama, tokenizer)
    engine.pool = BlockPool(WINDOW // BLOCK_SIZE, BLOCK_SIZE)
    request = make_sensed(num_chunks=WINDOW // 2, budget=WINDOW // 3)
    with pytest.raises(InvalidRequest, match=f"the KV cache holds {WINDOW}"):
        engine.check(request)


def test_expanding_in_place_equals_laying_the_prompt_out_anew():
    request, expanded = make_sensed(seed=5), [0, 7, 19]
    chunks, question_ids = request.to_sense, request.prompt.input_ids[-9:].tolist()
    packed = PackedChunks(chunks.token_ids, chunks.passages)
    anew = lay_out_prompt(packed, expanded, question_ids, VOCAB_SIZE, HEAD_IDS)
    in_place = expand_in_place(request.prompt, chunks.token_ids, expanded, VOCAB_SIZE)
    assert in_place.input_ids.tolist() == anew.input_ids.tolist()
    assert torch.equal(in_place.chunk_embeddings, request.prompt.chunk_embeddings[anew.compressed])


def test_requests_of_the_same_engine_that_sense_nothing_are_as_ever(llama, tokenizer):
    requests = mixed_requests(4)
    assert run(make_sensing_engine(llama, tokenizer), requests) == [
        answer_alone(llama, tokenizer, request) for request in requests
    ]


def test_a_choice_for_which_there_is_no_room_beside_a_shared_context_waits_for_it(llama, tokenizer):
    """Both hold the blocks of the compressed context, and neither's expanded prompt begins with them."""
    requests = [make_sensed(num_chunks=40, num_question=count, budget=20, seed=3) for count in (9, 14)]
    engine = make_sensing_engine(llama, tokenizer, max_step_slots=512)
    num_shared = (len(HEAD_IDS) + 40) // BLOCK_SIZE
    num_blocks = sum(engine.pool.blocks_for(request.max_slots) for request in requests) - num_shared
    engine.pool = engine.scheduler.pool = BlockPool(num_blocks, BLOCK_SIZE)
    engine.add(requests[0])
    outputs = engine.step()
    engine.add(requests[1])
    while engine.has_work:
        outputs += engine.step()
        engine.check_integrity()
    assert [output.error for output in outputs if output.error] == []
    for request in requests:
        own = [output for output in outputs if output.request is request]
        choice, *deltas = [output.choice or output.delta for output in own]
        found = choice.expanded, join_deltas(deltas)
        assert found == answer_in_process(llama, tokenizer, request, engine.senses)
    assert engine.pool.num_available == num_blocks
