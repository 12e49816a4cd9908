"""The engine against Hugging Face's `generate`, one by one and padded, and transformers' continuous batching.

python -m perf.engine --output perf/results/engine.json

One run, methods in turn on the same prompts, so that ratios hold on a noisy machine. Measured is

    tokens per second   of all generated tokens, prefill included: requests arrive together, every answer has the
                        same length, and the end-of-sequence token is held back
    overhead            share of the engine's steps spent outside the model's forward pass, at each concurrency
    time to first token of a short prompt alone, and of one that arrives while a long prompt is prefilled

The last line of the output is the report as one JSON object.
"""

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tqdm import tqdm
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from refrag.engine.engine import Engine, EngineSettings
from refrag.engine.generation import Delta, MixedPrompt
from refrag.engine.request import Request
from refrag.engine.worker import EngineWorker
from refrag.environment import describe_environment
from refrag.errors import RefragError
from refrag.model.checkpoint import load_decoder, load_decoder_tokenizer
from refrag.model.decoder import Decoder
from refrag.request import SamplingParams

# Decoders of random weights: their speed does not depend on what they know.
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
}
SHORTEST_PROMPT, LONGEST_PROMPT = 64, 1024
LONG_PROMPT = 8192
# Where in the long prefill the short prompt arrives.
ARRIVALS = (0.1, 0.3, 0.5, 0.7, 0.9)

Prompts = Sequence[Sequence[int]]
Method = Callable[[Prompts, int], None]


class Subject:
    """One decoder, with every way to generate from it."""

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, window: int, settings: EngineSettings):
        self.model = decoder.backbone
        # Every answer has the length that was asked for.
        self.model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
        self.decoder, self.window = decoder, window
        self.engine = Engine(decoder, tokenizer, window, settings)
        self.methods: dict[str, Method] = {
            "engine": self.run_engine,
            "generate, one by one": self.generate_one_by_one,
            "generate, padded": self.generate_padded,
            "transformers' continuous batching": self.generate_batch,
        }

    def draw_prompts(self, count: int, longest: int, rng: random.Random) -> Prompts:
        lengths = [rng.randint(SHORTEST_PROMPT, longest) for _ in range(count)]
        return [[rng.randrange(3, self.decoder.vocab_size) for _ in range(length)] for length in lengths]

    def run_engine(self, prompts: Prompts, num_tokens: int) -> None:
        for prompt in prompts:
            self.engine.add(self.request(prompt, num_tokens))
        while self.engine.has_work:
            for output in self.engine.step():
                assert output.error is None, output.error

    def generate_one_by_one(self, prompts: Prompts, num_tokens: int) -> None:
        for prompt in prompts:
            self.model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False)

    def generate_padded(self, prompts: Prompts, num_tokens: int) -> None:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False)

    def generate_batch(self, prompts: Prompts, num_tokens: int) -> None:
        outputs = self.model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=GenerationConfig(
                max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(max_batch_tokens=self.engine.settings.max_step_slots, num_blocks=64, allow_block_sharing=False),
            progress_bar=False,
        )
        counts = [len(output.generated_tokens) for output in outputs.values()]
        assert counts == [num_tokens] * len(prompts), counts

    def request(self, prompt: Sequence[int], num_tokens: int) -> Request:
        mixed = MixedPrompt(torch.tensor(prompt), torch.zeros(0, self.decoder.width))
        return Request(mixed, SamplingParams(max_tokens=num_tokens), arrival=time.monotonic())
