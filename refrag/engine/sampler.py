"""Chooses the next token id from logits."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from refrag.engine.answer import Pick
from refrag.request import SamplingParams

# V vocabulary size


class Sampler:
    """The sampler of one request, with its own generator, so that a seed gives the same tokens alone or in a batch."""

    def __init__(self, sampling: SamplingParams, eos_ids: Collection[int]) -> None:
        self.is_greedy = sampling.temperature == 0
        self.with_log_probability = sampling.log_probabilities
        self.processors = _processors(sampling, eos_ids)
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    @property
    def takes_likeliest(self) -> bool:
        """Return whether only the highest logit matters."""
        return self.is_greedy and not self.processors and not self.with_log_probability

    def pick(self, logits: Tensor, token_ids: Sequence[int]) -> Pick:
        """Choose the token after those generated so far.  (V,) -> Pick"""
        logits = logits.float().cpu()
        ids, scores = torch.LongTensor([list(token_ids)]), logits.unsqueeze(0).clone()
        for processor in self.processors:
            scores = processor(ids, scores)
        scores = scores[0]
        if self.is_greedy:
            token_id = int(scores.argmax())
        else:
            token_id = int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))
        if not self.with_log_probability:
            return Pick(token_id)
        return Pick(token_id, float(logits.log_softmax(-1)[token_id]))


def _processors(sampling: SamplingParams, eos_ids: Collection[int]) -> list[LogitsProcessor]:
    """Return the processors in the order of Hugging Face's `generate`, so that a seed means the same tokens in both."""
    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.min_tokens and eos_ids:
        processors.append(MinNewTokensLengthLogitsProcessor(0, sampling.min_tokens, sorted(eos_ids)))
    if sampling.temperature not in (0, 1):
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.temperature and sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.temperature and sampling.top_p is not None:
        processors.append(TopPLogitsWarper(float(sampling.top_p)))
    return processors
