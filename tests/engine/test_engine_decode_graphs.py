"""Decoding by block table in recorded passes. The pass is called anew instead of replayed, but in the last test, which
needs a GPU.
"""

import math

import pytest
import torch
from engine_helpers import (
    BLOCK_SIZE,
    GREEDY,
    SAMPLED,
    VOCAB_SIZE,
    WIDTH,
    answer_alone,
    make_engine,
    make_prompt,
    make_request,
    run,
    run_unchecked,
    scatter_blocks,
)
from families import LATENT, make_family

from refrag.engine.block_pool import BlockPool
from refrag.engine.decode_graphs import DecodeGraphs
from refrag.engine.engine import Engine
from refrag.engine.settings import EngineSettings

# Without a GPU nothing is compiled.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def make_engine_with_graphs(decoder, tokenizer, max_active=5):
    engine = make_engine(decoder, tokenizer, max_active=max_active, kv_cache_mib=1)
    cache = engine.runner.cache
    engine.pool = engine.scheduler.pool = BlockPool(engine.pool.num_blocks - 1, BLOCK_SIZE)
    engine.runner.graphs = DecodeGraphs(decoder, cache, BLOCK_SIZE, max_active, recorder=lambda compute: compute)
    return engine


def requests_of(lengths, **options):
    samplings = [GREEDY, SAMPLED]
    return [make_request(make_prompt(n, i), samplings[i % 2], **options) for i, n in enumerate(lengths)]


def test_answers_are_those_without_graphs(decoder, tokenizer):
    """Seven requests of many lengths share five places, so rows change hands and steps have every size."""
    requests = requests_of([40, 3, 75, 1, 22, 60, 9])
    answers = run(make_engine_with_graphs(decoder, tokenizer), requests, per_step=1)
    assert answers == [answer_alone(decoder, tokenizer, request) for request in requests]


def test_values_may_be_narrower_than_keys(tokenizer):
    decoder = make_family(
        "deepseek_v3", **LATENT, vocab_size=VOCAB_SIZE, hidden_size=WIDTH, max_position_embeddings=512
    )
    requests = requests_of([40, 3, 75])
    answers = run(make_engine_with_graphs(decoder, tokenizer), requests, per_step=1)
    assert answers == [answer_alone(decoder, tokenizer, request) for request in requests]


def test_a_step_takes_the_next_larger_graph(llama, tokenizer):
    graphs = make_engine_with_graphs(llama, tokenizer).runner.graphs
    assert graphs.sizes == [1, 2, 4, 5]
    assert {size: len(graph.runs) for size, graph in graphs.graphs.items()} == {1: 1, 2: 2, 4: 4, 5: 5}


def test_scattered_blocks_are_found(decoder, tokenizer):
    engine = make_engine_with_graphs(decoder, tokenizer)
    scatter_blocks(engine)
    [request] = requests_of([75])
    assert run_unchecked(engine, request) == answer_alone(decoder, tokenizer, request).token_ids


def test_what_a_failed_prompt_leaves_reaches_nobody(llama, tokenizer):
    """NaN in a slot that a mask hides would still turn a weighted sum into NaN."""
    engine = make_engine_with_graphs(llama, tokenizer)
    poisoned = make_prompt(30)
    poisoned.chunk_embeddings.fill_(math.nan)
    engine.add(make_request(poisoned))
    [output] = engine.step()
    while output.error is None:
        [output] = engine.step()
    assert "NaN or infinity" in str(output.error)
    [request] = requests_of([20])
    assert run(engine, [request]) == [answer_alone(llama, tokenizer, request)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_passes_give_the_logits_of_others(llama, tokenizer, dtype):
    decoder = type(llama)(type(llama.backbone)(llama.backbone.config).eval())
    decoder.load_state_dict(llama.state_dict())
    decoder.to("cuda", dtype)
    engine = Engine(decoder, tokenizer, 512, EngineSettings(kv_cache_mib=64, block_size=128, max_active=4))
    assert engine.runner.graphs is not None, "the log says why nothing was recorded"
    requests = requests_of([40, 3, 75])
    answers = run(engine, requests, per_step=1)
    engine.runner.graphs = None
    assert answers == run(engine, requests, per_step=1)
