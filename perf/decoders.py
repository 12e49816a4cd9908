"""Decoders to measure, each with every method of generating from it."""

import copy
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from refrag.config import RefragConfig
from refrag.decoders.base import MixedPrompt
from refrag.engine.engine import Engine
from refrag.engine.prefix import block_keys
from refrag.engine.request import EngineRequest
from refrag.engine.settings import EngineSettings
from refrag.model.decoder import Decoder
from refrag.request import SamplingParams

# Decoders with random weights: their speed does not depend on what they know.
SHAPES: dict[str, dict[str, Any]] = {
    "30m": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "max_position_embeddings": 16384,
    },
    "llama-2-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        # More positions than it was trained with, to measure longer contexts.
        "max_position_embeddings": 131072,
    },
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
}
# Slots per page of transformers' cache.
PAGE_SIZE = 32

Prompts = Sequence[Sequence[int]]
# (prompts, tokens per answer) -> seconds
Method = Callable[[Prompts, int], float]


class Subject:
    """A decoder to measure, with every method of generating from it."""

    def __init__(
        self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, window: int, settings: EngineSettings
    ) -> None:
        self.decoder, self.window = decoder, window
        # Without an end token every answer has the length that was asked for.
        decoder.backbone.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
        # The other methods get an unchanged copy: the engine changes how its own decoder computes products.
        self.model: Any = copy.deepcopy(decoder.backbone)
        self.engine = Engine(decoder, tokenizer, window, settings)
        self.methods: dict[str, Method] = {
            "engine": self.run_engine,
            "generate, one by one": self.generate_one_by_one,
            "generate, padded": self.generate_padded,
            "transformers' continuous batching": self.generate_continuously,
        }

    def draw_prompt(self, length: int, rng: random.Random) -> Sequence[int]:
        return [rng.randrange(3, self.decoder.vocab_size) for _ in range(length)]

    def request(self, prompt: Sequence[int], num_tokens: int) -> EngineRequest:
        mixed = MixedPrompt(torch.tensor(prompt), torch.zeros(0, self.decoder.width))
        keys = block_keys(mixed, self.engine.pool.block_size, self.decoder.vocab_size)
        return EngineRequest(mixed, SamplingParams(max_tokens=num_tokens), keys=keys)

    def run_engine(self, prompts: Prompts, num_tokens: int) -> float:
        start = time.perf_counter()
        for prompt in prompts:
            self.engine.add(self.request(prompt, num_tokens))
        while self.engine.has_work:
            for output in self.engine.step():
                assert output.error is None, output.error
        return time.perf_counter() - start

    def generate_one_by_one(self, prompts: Prompts, num_tokens: int) -> float:
        start = time.perf_counter()
        for prompt in prompts:
            self.model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False)
        return time.perf_counter() - start

    def generate_padded(self, prompts: Prompts, num_tokens: int) -> float:
        start, longest = time.perf_counter(), max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False)
        return time.perf_counter() - start

    def generate_continuously(self, prompts: Prompts, num_tokens: int) -> float:
        """Return the seconds of continuous batching, without its start and warm-up, as for the engine."""
        # It gets as many slots per step and in the cache as the engine; by default it would take most of the memory.
        batching = ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=self.engine.pool.num_blocks * self.engine.pool.block_size // PAGE_SIZE,
            max_batch_tokens=max(self.engine.settings.max_step_slots, self.engine.settings.max_whole_slots),
        )
        generation = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        with self.model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=batching
        ) as manager:
            start = time.perf_counter()
            manager.add_requests(inputs=[list(prompt) for prompt in prompts], max_new_tokens=num_tokens)
            num_finished = 0
            while num_finished < len(prompts):
                result = manager.get_result(timeout=1)
                assert result is not None or manager.is_running(), "continuous batching ended before its requests"
                num_finished += result is not None and result.is_finished()
            return time.perf_counter() - start


def make_subject(name: str, kv_cache_mib: int) -> Subject:
    """Return the subject for a name in SHAPES, with random weights, or for the folder of a checkpoint."""
    settings = EngineSettings(kv_cache_mib=kv_cache_mib)
    if name not in SHAPES:
        # Imported here: a shape needs none of what reads checkpoints.
        from refrag.model.checkpoint import load_decoder
        from refrag.model.tokenizers import load_decoder_tokenizer

        folder = Path(name)
        window = RefragConfig.load(folder).max_prompt_slots
        return Subject(load_decoder(folder), load_decoder_tokenizer(folder), window, settings)
    decoder = make_decoder(name)
    tokenizer = make_tokenizer(decoder.vocab_size)
    return Subject(decoder, tokenizer, decoder.backbone.config.max_position_embeddings, settings)


def make_decoder(shape: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """Return a decoder with random weights, which are made on the device that uses them."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], dtype=dtype)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
        return Decoder(model.to(dtype).eval())


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer with one word for each id."""
    words = {f"word{index} ": index for index in range(vocab_size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="word0 ")))
