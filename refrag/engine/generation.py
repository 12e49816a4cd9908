"""Generates one request's answer: mixed prompt in, deltas out."""

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refrag.decoders.base import Delta, MixedPrompt
from refrag.engine.answer import Answer, Pick
from refrag.engine.sampler import Sampler
from refrag.model.decoder import Decoder
from refrag.request import SamplingParams

# S slots, R rows of chunk embeddings, D decoder width


class Generation(Answer):
    """An answer in the making, with what picks its tokens: a sampler, or `choose`, which takes logits (V,)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Collection[int],
        sampling: SamplingParams,
        choose: Callable[[Tensor], int] | None = None,
    ) -> None:
        super().__init__(tokenizer, eos_ids, sampling)
        self.sampler, self.choose = Sampler(sampling, eos_ids), choose

    @property
    def takes_likeliest(self) -> bool:
        """Return whether only the highest logit matters, which can be found for many requests at once."""
        return self.choose is None and self.sampler.takes_likeliest

    def pick(self, logits: Tensor) -> Pick:
        """Choose the token after these logits (V,)."""
        return self.sampler.pick(logits, self.token_ids) if self.choose is None else Pick(self.choose(logits))


def generate(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, prompt: MixedPrompt, sampling: SamplingParams
) -> Iterator[Delta]:
    """Yield one answer's deltas by Hugging Face's own cache and attention: the reference that the engine must equal."""
    generation = Generation(tokenizer, decoder.eos_ids, sampling)
    with torch.inference_mode():
        device = decoder.backbone.device
        inputs_embeds = decoder.embed_prompt(prompt.input_ids.to(device), prompt.chunk_embeddings.to(device))
    logits, cache = decoder.prefill(inputs_embeds)
    while True:
        delta = generation.extend(generation.pick(logits))
        yield delta
        if delta.finish_reason is not None:
            return
        logits = decoder.decode_one_token(generation.token_ids[-1], cache)
