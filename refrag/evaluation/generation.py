"""Greedy answers to many prompts at once, padded on the left so that all end in the same slot."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refrag.evaluation.reading import EmbeddedExample, batch_by_length
from refrag.model.decoder import Decoder
from refrag.teacher_forcing.batches import collate_mixed

# B prompts, S slots of the longest, T generated tokens, D decoder width


@torch.inference_mode()
def generate_texts(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, examples: Sequence[EmbeddedExample], max_tokens: int
) -> list[str]:
    """What follows the examples without their last segment, the answer, up to EOS."""
    prompts = [_embed_prompt(decoder, example, tokenizer.bos_token_id) for example in examples]
    generate: Any = decoder.backbone.generate
    texts: dict[int, str] = {}
    for numbers in batch_by_length([len(prompt) for prompt in prompts]):
        padded, mask = _pad_left([prompts[number] for number in numbers])
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
    return [texts[number] for number in range(len(examples))]


def _embed_prompt(decoder: Decoder, one: EmbeddedExample, bos_id: int | None) -> Tensor:
    """(S, D)"""
    prompt = replace(one.example, segments=one.example.segments[:-1], first_row=0)
    batch = collate_mixed([prompt], decoder.vocab_size, bos_id)
    return decoder.embed_prompt(batch.input_ids[0], one.embeddings)


def _pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts (B, S, D) and their attention mask (B, S)."""
    width = max(map(len, prompts))
    padded = torch.stack([torch.nn.functional.pad(prompt, (0, 0, width - len(prompt), 0)) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)
    return padded, (torch.arange(width) >= width - lengths).long()
