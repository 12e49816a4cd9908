"""Reading of many prompts at once: their slots once, then answers and continuations after them.

slots    . . ^ A B q q   a a .      padded on the left, so that all answers begin in the same slot
         ^ A B c c q q   a a a
cache    ───────────────            read once; an answer and each forced continuation start from a copy
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from refrag.decoders.base import MixedPrompt
from refrag.evaluation.reading import pad_left
from refrag.model.decoder import Decoder

# B prompts, S slots of the longest, N new slots, T tokens, V vocabulary size


class BatchReader:
    """Prompts in a decoder's cache, read together; what it returns for each is what `PromptReader` does."""

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, prompts: Sequence[MixedPrompt]) -> None:
        self.decoder = decoder
        embedded = [decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings) for prompt in prompts]
        padded, self._mask = pad_left(embedded)  # (B, S, D), (B, S)
        self._is_padded = min(map(len, embedded)) < padded.shape[1]
        self._cache = DynamicCache(config=decoder.backbone.config)
        self._logits = self._read(self._cache, self._mask, inputs_embeds=padded, logits_to_keep=1)[:, -1]  # (B, V)

    @torch.inference_mode()
    def answer(self, max_tokens: int) -> list[tuple[list[int], int | None]]:
        """Return for each prompt the likeliest tokens, and the one that ended them; None if `max_tokens` did."""
        cache, mask, logits = copy.deepcopy(self._cache), self._mask, self._logits
        answers: list[list[int]] = [[] for _ in mask]
        end_ids: list[int | None] = [None for _ in mask]
        unfinished = set(range(len(mask)))
        while True:
            likeliest = logits.argmax(-1)  # (B,)
            for number, token_id in enumerate(likeliest.tolist()):
                if number not in unfinished:
                    continue
                if token_id in self.decoder.eos_ids:
                    end_ids[number] = token_id
                else:
                    answers[number].append(token_id)
                if end_ids[number] is not None or len(answers[number]) == max_tokens:
                    unfinished.remove(number)
            if not unfinished:
                return list(zip(answers, end_ids, strict=True))
            mask = _extend(mask, 1)
            logits = self._read(cache, mask, input_ids=likeliest.unsqueeze(1))[:, -1]

    @torch.inference_mode()
    def logits(self, continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return for each prompt the logits before each token of its continuation, which may be empty.  -> (T, V)"""
        logits, width = self._logits.unsqueeze(1), max(map(len, continuations)) - 1
        if width > 0:
            # Padded on the right: no token sees what stands behind it.
            rows = [[*ids[:-1], *[0] * (width + 1 - max(1, len(ids)))] for ids in continuations]
            input_ids = torch.tensor(rows, device=self.decoder.device)  # (B, N)
            read = self._read(copy.deepcopy(self._cache), _extend(self._mask, width), input_ids=input_ids)
            logits = torch.cat([logits, read], 1)
        return [row[: len(ids)] for row, ids in zip(logits, continuations, strict=True)]

    @torch.inference_mode()
    def log_perplexities(self, continuations: Sequence[Sequence[int]]) -> list[float]:
        """Return the mean negative log-likelihood of each prompt's continuation, NaN for an empty one."""
        found = []
        for logits, ids in zip(self.logits(continuations), continuations, strict=True):
            targets = torch.tensor(ids, device=logits.device, dtype=torch.long)
            found.append(float(torch.nn.functional.cross_entropy(logits.float(), targets)) if len(ids) else math.nan)
        return found

    def _read(self, cache: Cache, mask: Tensor, **inputs: Tensor | int) -> Tensor:
        """Return the logits of slots that are added to the cache; the mask is of all, old and new.  -> (B, N, V)"""
        if self._is_padded:
            num_new = mask.shape[1] - cache.get_seq_length()
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -num_new:]
            inputs |= {"attention_mask": mask, "position_ids": positions}
        logits: Tensor = self.decoder.backbone(**inputs, cache=cache, use_cache=True).logits
        return logits


def _extend(mask: Tensor, count: int) -> Tensor:
    """Return the mask with so many more slots.  (B, S) -> (B, S + count)"""
    return torch.cat([mask, mask.new_ones(len(mask), count)], 1)
