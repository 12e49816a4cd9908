"""One request's generation: mixed prompt in, deltas out. Run alone it is the reference; the engine interleaves many."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from refrag.engine.sampler import Sampler
from refrag.engine.text_stream import TextStream
from refrag.errors import InvalidRequest
from refrag.model.decoder import Decoder
from refrag.request import SamplingParams

# S slots, R rows of chunk embeddings, D decoder width

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Delta:
    """What one decoding step adds. Its text may lag behind its tokens; the last delta has a finish reason."""

    text: str
    token_ids: list[int]
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
    if not torch.isfinite(prompt.chunk_embeddings).all():
        raise InvalidRequest("prompt_embedding_table holds NaN or infinity; every value must be finite")


def generate(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, prompt: MixedPrompt, sampling: SamplingParams
) -> Iterator[Delta]:
    """Deltas of one answer: the first after the prefill, then one for each decoded token."""
    sampler, text = Sampler(sampling), TextStream(tokenizer, sampling.stop_words)
    with torch.inference_mode():
        inputs_embeds = decoder.embed_prompt(prompt.input_ids, prompt.chunk_embeddings)
    logits, cache = decoder.prefill(inputs_embeds)
    eos_ids = decoder.eos_ids
    for count in range(1, sampling.max_tokens + 1):
        token_id = sampler.pick(logits)
        if token_id in eos_ids:
            yield Delta(text.flush(), [], "stop")
            return
        piece = text.push(token_id)
        if text.stopped:
            yield Delta(piece, [token_id], "stop")
            return
        if count == sampling.max_tokens:
            yield Delta(piece + text.flush(), [token_id], "length")
            return
        yield Delta(piece, [token_id])
        logits = decoder.decode_one_token(token_id, cache)
