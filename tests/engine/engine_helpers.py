"""Decoders of every supported architecture at tiny width, and what the tests do with an engine."""

import random

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from refrag.decoders.base import MixedPrompt, join_deltas
from refrag.engine.engine import Engine
from refrag.engine.generation import generate
from refrag.engine.prefix import block_keys
from refrag.engine.request import EngineRequest
from refrag.engine.settings import EngineSettings
from refrag.model.decoder import Decoder
from refrag.request import SamplingParams

VOCAB_SIZE, WIDTH, WINDOW, BLOCK_SIZE = 512, 48, 512, 8
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large enough that answers differ and vary.
    "initializer_range": 0.3,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Short sliding windows, so that prompts outgrow them; grouped queries in all.
ARCHITECTURES = {
    "llama": LlamaConfig(**SHAPE),
    "llama, tied, scaled RoPE": LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=11),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "gemma": GemmaConfig(**SHAPE, head_dim=16),
    "gemma2": Gemma2Config(**SHAPE, head_dim=16, sliding_window=7, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=7, query_pre_attn_scalar=16),
    "phi3": Phi3Config(**SHAPE, sliding_window=13),
}
GREEDY = SamplingParams(max_tokens=12)
SAMPLED = SamplingParams(max_tokens=12, temperature=0.9, top_k=50, top_p=0.95, seed=7)


def make_decoder(name):
    """Make a decoder in double precision, so that sums in another order cannot change a token."""
    torch.manual_seed(0)
    return Decoder(AutoModelForCausalLM.from_config(ARCHITECTURES[name]).eval().double())


def make_engine(decoder, tokenizer, **settings):
    defaults = {"kv_cache_mib": 8, "block_size": BLOCK_SIZE, "max_step_slots": 24, "max_whole_slots": 1}
    return Engine(decoder, tokenizer, WINDOW, EngineSettings(**{**defaults, **settings}))


def make_prompt(num_slots, seed=0, num_rows=3):
    """Make a prompt of random tokens with some chunk embeddings among them."""
    generator = torch.Generator().manual_seed(1000 * num_slots + seed)
    input_ids = torch.randint(3, VOCAB_SIZE, (num_slots,), generator=generator)
    num_rows = min(num_rows, num_slots)
    places = torch.randperm(num_slots, generator=generator)[:num_rows].sort().values
    input_ids[places] = VOCAB_SIZE + torch.arange(num_rows)
    return MixedPrompt(input_ids, 0.3 * torch.randn(num_rows, WIDTH, generator=generator))


def make_request(prompt, sampling=GREEDY, **options):
    return EngineRequest(prompt, sampling, keys=block_keys(prompt, BLOCK_SIZE, VOCAB_SIZE), **options)


def mixed_requests(count, seed=0):
    """Make requests with prompts of 1 to 120 slots; half of them sample their answers."""
    rng = random.Random(seed)
    return [
        make_request(make_prompt(rng.choice([1, 7, 8, 9, rng.randint(10, 120)]), number), (GREEDY, SAMPLED)[number % 2])
        for number in range(count)
    ]


def answer_alone(decoder, tokenizer, request):
    """Return the sequential reference's answer."""
    return join_deltas(list(generate(decoder, tokenizer, request.prompt, request.sampling)))


def scatter_blocks(engine):
    """Take every second block, so that a prompt lies in as many runs as it has blocks."""
    engine.pool.is_blank[::2] = False
    engine.pool.num_blank = int(engine.pool.is_blank.sum())


def run_unchecked(engine, request):
    """Return the tokens of one request, from an engine whose blocks do not add up."""
    engine.add(request)
    tokens = []
    while engine.has_work:
        tokens += [token_id for output in engine.step() for token_id in output.delta.token_ids]
    return tokens


def run(engine, requests, per_step=None):
    """Add the requests, `per_step` before each step or all at once; return each one's joined answer."""
    deltas = {request: [] for request in requests}
    waiting = list(requests)
    while waiting or engine.has_work:
        for request in waiting[:per_step]:
            engine.add(request)
        waiting = [] if per_step is None else waiting[per_step:]
        for output in engine.step():
            assert output.error is None, output.error
            deltas[output.request].append(output.delta)
        engine.check_integrity()
    assert engine.pool.num_available == engine.pool.num_blocks
    return [join_deltas(deltas[request]) for request in requests]
