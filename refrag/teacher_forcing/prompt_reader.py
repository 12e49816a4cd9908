"""Reading of one prompt: its slots once, then any number of continuations after them."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from refrag.decoders.base import MixedPrompt
from refrag.model.decoder import Decoder

# S slots, T tokens, V vocabulary size


class PromptReader:
    """A prompt in a decoder's cache; a greedy answer and forced ones start from it, each on a copy of the cache."""

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, prompt: MixedPrompt) -> None:
        self.decoder = decoder
        self._logits, self._cache = decoder.prefill(decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings))

    @torch.inference_mode()
    def answer(self, max_tokens: int) -> tuple[list[int], int | None]:
        """Return the likeliest tokens, and the one by which the decoder ended them; None if `max_tokens` did."""
        cache, logits, token_ids = copy.deepcopy(self._cache), self._logits, list[int]()
        while (token_id := int(logits.argmax())) not in self.decoder.eos_ids:
            token_ids.append(token_id)
            if len(token_ids) == max_tokens:
                return token_ids, None
            logits = self.decoder.decode_one_token(token_id, cache)
        return token_ids, token_id

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return the logits before each of these tokens, which must be at least one.  -> (T, V)"""
        first = self._logits.unsqueeze(0)
        if len(token_ids) == 1:
            return first
        input_ids = torch.tensor([token_ids[:-1]], device=self.decoder.device)
        output = self.decoder.backbone(input_ids=input_ids, cache=copy.deepcopy(self._cache), use_cache=True)
        return torch.cat([first, output.logits[0]])

    def log_perplexity(self, token_ids: Sequence[int]) -> float:
        """Return the mean negative log-likelihood of these tokens."""
        targets = torch.tensor(token_ids, device=self.decoder.device)
        return float(torch.nn.functional.cross_entropy(self.logits(token_ids).float(), targets))
