"""Generates one request's answer: mixed prompt in, deltas out."""

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refrag.decoders.base import Delta, MixedPrompt
from refrag.engine.sampler import Pick, Sampler
from refrag.engine.text_stream import TextStream
from refrag.model.decoder import Decoder
from refrag.request import SamplingParams

# S slots, R rows of chunk embeddings, D decoder width


class Generation:
    """An answer in the making: tokens in, deltas out. choose: takes logits (V,), returns the token; None to sample."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Collection[int],
        sampling: SamplingParams,
        choose: Callable[[Tensor], int] | None = None,
    ) -> None:
        self.eos_ids, self.max_tokens = eos_ids, sampling.max_tokens
        self.sampler, self.choose = Sampler(sampling, eos_ids), choose
        self.text = TextStream(tokenizer, sampling.stop_words)
        self.token_ids: list[int] = []

    @property
    def takes_likeliest(self) -> bool:
        """Return whether only the highest logit matters, which can be found for many requests at once."""
        return self.choose is None and self.sampler.takes_likeliest

    def pick(self, logits: Tensor) -> Pick:
        """Choose the token after these logits (V,)."""
        return self.sampler.pick(logits, self.token_ids) if self.choose is None else Pick(self.choose(logits))

    def extend(self, pick: Pick) -> Delta:
        """Add the token to the answer and return the delta; one with a finish reason must be the last."""
        if pick.token_id in self.eos_ids:
            return Delta(self.text.flush(), [], finish_reason="stop")
        self.token_ids.append(pick.token_id)
        piece = self.text.push(pick.token_id)
        log_probabilities = [] if pick.log_probability is None else [pick.log_probability]
        if self.text.stopped:
            return Delta(piece, [pick.token_id], log_probabilities, "stop")
        if len(self.token_ids) == self.max_tokens:
            return Delta(piece + self.text.flush(), [pick.token_id], log_probabilities, "length")
        return Delta(piece, [pick.token_id], log_probabilities)


def generate(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, prompt: MixedPrompt, sampling: SamplingParams
) -> Iterator[Delta]:
    """Yield one answer's deltas by Hugging Face's own cache and attention: the reference that the engine must equal."""
    generation = Generation(tokenizer, decoder.eos_ids, sampling)
    with torch.inference_mode():
        inputs_embeds = decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings)
    logits, cache = decoder.prefill(inputs_embeds)
    while True:
        delta = generation.extend(generation.pick(logits))
        yield delta
        if delta.finish_reason is not None:
            return
        logits = decoder.decode_one_token(generation.token_ids[-1], cache)
