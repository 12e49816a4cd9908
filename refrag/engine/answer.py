"""One request's answer, made of the tokens that a decoder picks one by one."""

from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from refrag.decoders.base import Delta
from refrag.engine.text_stream import TextStream
from refrag.request import SamplingParams


@dataclass(frozen=True)
class Pick:
    """The chosen token. log_probability: its natural logarithm before temperature and limits; None unless asked for."""

    token_id: int
    log_probability: float | None = None


class Answer:
    """An answer in the making: tokens in, deltas out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int], sampling: SamplingParams) -> None:
        self.eos_ids, self.max_tokens = eos_ids, sampling.max_tokens
        self.text = TextStream(tokenizer, sampling.stop_words)
        self.token_ids: list[int] = []

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
