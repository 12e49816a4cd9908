"""Any decoder that transformers opens loads and answers as `generate` does, or is refused by the property it lacks."""

import pytest
import torch
from engine_helpers import BLOCK_SIZE
from families import LOADED, LOADED_TOO, REFUSED, VOCAB_SIZE, WINDOW, make_family
from transformers import GenerationConfig

from refrag.decoders.base import MixedPrompt
from refrag.engine.engine import Engine
from refrag.engine.prefix import block_keys
from refrag.engine.request import EngineRequest
from refrag.engine.settings import EngineSettings
from refrag.engine.support import layer_shapes
from refrag.errors import CheckpointError
from refrag.request import SamplingParams

NUM_TOKENS, NUM_CHUNKS = 8, 6


def mixed_prompt(decoder):
    """Make a prompt that leaves room for just the answer."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, VOCAB_SIZE, (WINDOW - NUM_TOKENS,), generator=generator)
    places = torch.randperm(len(input_ids), generator=generator)[:NUM_CHUNKS].sort().values
    input_ids[places] = VOCAB_SIZE + torch.arange(NUM_CHUNKS)
    return MixedPrompt(input_ids, 0.3 * torch.randn(NUM_CHUNKS, decoder.width, generator=generator))


def answer(decoder, tokenizer, prompt):
    """Read the prompt in parts, and answer up to the window's last slot."""
    settings = EngineSettings(kv_cache_mib=8, block_size=BLOCK_SIZE, max_step_slots=24, max_whole_slots=1)
    engine = Engine(decoder, tokenizer, WINDOW, settings)
    sampling = SamplingParams(max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS)
    engine.add(EngineRequest(prompt, sampling, keys=block_keys(prompt, BLOCK_SIZE, VOCAB_SIZE)))
    token_ids = []
    while engine.has_work:
        token_ids += [token_id for output in engine.step() for token_id in output.delta.token_ids]
    return token_ids


def generated(decoder, prompt):
    config = GenerationConfig(
        max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=2, pad_token_id=0
    )
    embedded = decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings).unsqueeze(0)
    return decoder.backbone.generate(inputs_embeds=embedded, generation_config=config)[0].tolist()


@pytest.mark.parametrize(
    ("name", "shape"),
    [*LOADED.items(), *(pytest.param(*line, marks=pytest.mark.slow) for line in LOADED_TOO.items())],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_family_that_loads_answers_as_hugging_face_does_up_to_the_windows_end(name, shape, tokenizer):
    decoder = make_family(name, **shape)
    prompt = mixed_prompt(decoder)
    token_ids = answer(decoder, tokenizer, prompt)
    assert len(token_ids) == NUM_TOKENS
    assert token_ids == generated(decoder, prompt)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_does_not_load_is_refused_by_the_property_that_it_lacks(name):
    shape, reason = REFUSED[name]
    decoder = make_family(name, **shape)
    with pytest.raises(CheckpointError, match=rf"decoder of type '{name.split(',')[0]}' is not supported: .*{reason}"):
        layer_shapes(decoder, WINDOW)
