"""Logits → the next token id."""

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from refrag.request import SamplingParams


class Sampler:
    """One request's sampling: its own generator, so that a seed gives the same tokens alone or among others."""

    def __init__(self, sampling: SamplingParams) -> None:
        self.greedy = sampling.temperature == 0
        self.warpers = LogitsProcessorList()
        if not self.greedy:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k is not None:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    def pick(self, logits: Tensor) -> int:
        """(V,) -> token id"""
        if self.greedy:
            return int(logits.argmax())
        # The warpers of transformers look at the scores alone, not at the tokens so far.
        no_tokens = torch.LongTensor([[]])
        warped = self.warpers(no_tokens, logits.float().unsqueeze(0))[0]
        return int(torch.multinomial(warped.softmax(-1), 1, generator=self.generator))
