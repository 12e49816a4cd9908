"""One request's generation: mixed prompt in, deltas out."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refrag.engine.sampler import Pick, Sampler
from refrag.engine.text_stream import TextStream
from refrag.errors import InvalidRequest
from refrag.model.decoder import Decoder
from refrag.request import SamplingParams

# S slots, R rows of chunk embeddings, D decoder width

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Delta:
    """What one decoding step adds. Its text may lag behind its tokens; the last delta has a finish reason.

    log_probabilities: of the tokens, where the request asked for them.
    """

    text: str
    token_ids: list[int]
    log_probabilities: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class MixedPrompt:
    """input_ids (S,): an id ≥ vocab_size is row (id − vocab_size) of chunk_embeddings (R, D)."""

    input_ids: Tensor
    chunk_embeddings: Tensor


def check_prompt(prompt: MixedPrompt, sampling: SamplingParams, decoder: Decoder, max_prompt_slots: int) -> None:
    """Raise InvalidRequest unless prompt and answer fit the window and every placeholder has its row."""
    num_slots = len(prompt.input_ids)
    if num_slots == 0:
        raise InvalidRequest("the prompt has no slots; send at least a question")
    if num_slots + sampling.max_tokens > max_prompt_slots:
        raise InvalidRequest(
            f"the prompt needs {num_slots} slots and max_tokens {sampling.max_tokens} more, the decoder's window is "
            f"{max_prompt_slots}; send fewer passages, or lower expand_fraction or max_tokens"
        )
    rows, width = prompt.chunk_embeddings.shape
    if rows and width != decoder.width:
        raise InvalidRequest(
            f"prompt_embedding_table has rows of width {width}; the decoder's width is {decoder.width}"
        )
    highest, lowest = int(prompt.input_ids.max()), int(prompt.input_ids.min())
    if lowest < 0 or highest >= decoder.vocab_size + rows:
        raise InvalidRequest(
            f"input_ids range from {lowest} to {highest}; allowed is 0 to {decoder.vocab_size + rows - 1}: "
            f"{decoder.vocab_size} tokens, then {rows} rows of prompt_embedding_table"
        )
    if rows > num_slots:
        raise InvalidRequest(
            f"prompt_embedding_table has {rows} rows for a prompt of {num_slots} slots; send those that input_ids name"
        )
    if not _are_finite(prompt.chunk_embeddings):
        raise InvalidRequest("prompt_embedding_table holds NaN or infinity; every value must be finite")


def _are_finite(rows: Tensor) -> bool:
    # In one pass without a mask of them all: what is not finite is among the extremes, NaN as both.
    return not rows.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(rows))).all())


def join_deltas(deltas: Sequence[Delta]) -> Delta:
    """The whole answer as one delta."""
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        log_probabilities=[value for delta in deltas for value in delta.log_probabilities],
        finish_reason=deltas[-1].finish_reason,
    )


class Generation:
    """An answer in the making: tokens in, deltas out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int], sampling: SamplingParams) -> None:
        self.eos_ids, self.max_tokens = eos_ids, sampling.max_tokens
        self.sampler = Sampler(sampling, eos_ids)
        self.text = TextStream(tokenizer, sampling.stop_words)
        self.token_ids: list[int] = []

    def pick(self, logits: Tensor) -> Pick:
        """The next token after these logits (V,)."""
        return self.sampler.pick(logits, self.token_ids)

    def extend(self, pick: Pick) -> Delta:
        """Take the token into the answer; nothing may follow a delta with a finish reason."""
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
    """Deltas of one answer, by Hugging Face's own cache and attention: the reference that the engine must equal."""
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
