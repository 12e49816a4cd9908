"""Reading of many prompts by a decoder: the likelihood of their targets, and texts generated from them.

Greedy decoding gives exactly the target if and only if each of its tokens, EOS included, is the likeliest one after
the true ones before it. So exact match takes one teacher-forced pass for a whole batch, and generation is left for the
text of wrong answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refrag.decoders.base import MixedPrompt
from refrag.model.decoder import Decoder
from refrag.teacher_forcing.batches import LaidOutExample, MixedBatch, collate_rows
from refrag.teacher_forcing.predict import predict

# B prompts, S slots of the longest, T predicted or generated tokens, D decoder width

MAX_BATCH_SLOTS = 8192


@dataclass(frozen=True)
class TargetedPrompt:
    """A prompt as the decoder takes it, with the tokens to predict after it.

    num_expanded: number of expanded chunks in the prompt.
    """

    prompt: MixedPrompt
    target_ids: Sequence[int]
    num_expanded: int = 0

    @property
    def num_slots(self) -> int:
        """Slots of the prompt and of the target."""
        return len(self.prompt.input_ids) + len(self.target_ids)


@dataclass(frozen=True)
class Reading:
    """The decoder's prediction of one target.

    losses (T,): negative log-likelihood of each predicted token. Without BOS nothing predicts the first slot, so the
        first token of the target has no loss where the prompt is empty.
    is_right: true if greedy decoding gives exactly the target.
    """

    losses: np.ndarray
    is_right: bool


@torch.inference_mode()
def read(decoder: Decoder, prompts: Sequence[TargetedPrompt]) -> list[Reading]:
    """Predict the target of each prompt in teacher-forced passes over batches of alike length."""
    readings: dict[int, Reading] = {}
    for numbers in batch_by_length([prompt.num_slots for prompt in prompts]):
        batch, rows = _collate([prompts[number] for number in numbers], decoder.vocab_size)
        prediction = predict(decoder, batch, rows)
        counts = torch.bincount(prediction.example_ids, minlength=len(numbers)).tolist()
        parts = zip(prediction.losses.split(counts), prediction.is_right.split(counts), strict=True)
        for number, (losses, is_right) in zip(numbers, parts, strict=True):
            readings[number] = Reading(losses.numpy(), bool(is_right.all()))
    return [readings[number] for number in range(len(prompts))]


@torch.inference_mode()
def generate_texts(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[MixedPrompt], max_tokens: int
) -> list[str]:
    """Generate greedily from each prompt up to EOS, in batches padded on the left so that all prompts end together."""
    embedded = [decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings) for prompt in prompts]
    generate: Any = decoder.backbone.generate
    texts: dict[int, str] = {}
    for numbers in batch_by_length([len(prompt) for prompt in embedded]):
        padded, mask = pad_left([embedded[number] for number in numbers])
        token_ids = generate(
            inputs_embeds=padded,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )  # (B, T)
        answers = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        texts.update(zip(numbers, map(str.strip, answers), strict=True))
    return [texts[number] for number in range(len(prompts))]


def batch_by_length(
    lengths: Sequence[int], max_slots: int = MAX_BATCH_SLOTS, max_pairs: float = math.inf
) -> list[list[int]]:
    """Return the numbers of the prompts in each batch, the longest first, so that few slots are padding.

    max_slots: of one batch, padding included. max_pairs: pairs of slots of the same prompt. A prompt that has more of
    either makes a batch of its own.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        longest, count = (lengths[batches[-1][0]], len(batches[-1]) + 1) if batches else (0, 0)
        if not batches or count * longest > max_slots or count * longest**2 > max_pairs:
            batches.append([])
        batches[-1].append(number)
    return batches


def _collate(prompts: Sequence[TargetedPrompt], vocab_size: int) -> tuple[MixedBatch, Tensor]:
    """Return one row for each prompt with its target, and the chunk embeddings of all of them."""
    examples, first_row = [], 0
    for one in prompts:
        ids, num_targets = one.prompt.input_ids, len(one.target_ids)
        numbered = torch.where(ids < vocab_size, ids, ids + first_row).tolist()
        weights = [0.0] * len(ids) + [1.0] * num_targets
        is_answer = [False] * len(ids) + [True] * num_targets
        examples.append(LaidOutExample([*numbered, *one.target_ids], weights, is_answer))
        first_row += len(one.prompt.chunk_embeddings)
    return collate_rows(examples), torch.cat([one.prompt.chunk_embeddings for one in prompts])


def pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the prompts (B, S, D) and their attention mask (B, S)."""
    width = max(map(len, prompts))
    padded = torch.stack([torch.nn.functional.pad(prompt, (0, 0, width - len(prompt), 0)) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=padded.device).unsqueeze(1)
    return padded, (torch.arange(width, device=padded.device) >= width - lengths).long()
