"""Reads the attention weights of a decoder as transformers computes them: slow, and the reference for the engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refrag.errors import CheckpointError
from refrag.model.attention_heads import AttentionHeads
from refrag.model.decoder import Decoder

# S slots of a prompt, R rows that are read, N heads, C slots whose weights are read, D decoder width

# The one implementation of transformers that returns the weights.
EAGER = "eager"


@torch.inference_mode()
def read_attention(
    decoder: Decoder,
    input_ids: Tensor,
    chunk_embeddings: Tensor,
    null_ids: Sequence[int],
    heads: AttentionHeads,
    num_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the heads' attention to the chunks of a prompt that is all compressed, and that under a null question.

    input_ids (S,): ends with the question, which starts behind the last chunk. null_ids: the null question in its
    place. num_tokens: tokens, generated after the question, whose attention counts too.  -> (N, C), (N, C)
    """
    chunk_slots = torch.nonzero(input_ids >= decoder.vocab_size)[:, 0]  # (C,)
    start, query_slots = int(chunk_slots[-1]) + 1, heads.scoring.query_slots
    prompt = decoder.embed_prompt(input_ids, chunk_embeddings)  # (S, D)
    context, rows = prompt[:start], range(max(start, len(prompt) - query_slots), len(prompt))
    null = torch.cat([context, decoder.token_embeddings(torch.tensor(null_ids, device=input_ids.device))])
    null_rows = range(max(start, len(null) - query_slots), len(null))
    null_weights = read_weights(decoder, null, heads.by_layer, null_rows, chunk_slots)
    if generated := likeliest_tokens(decoder, prompt, num_tokens):
        tokens = decoder.token_embeddings(torch.tensor(generated, device=input_ids.device))
        prompt, rows = torch.cat([prompt, tokens]), range(rows.start, rows.stop + len(generated))
    weights = read_weights(decoder, prompt, heads.by_layer, rows, chunk_slots)
    # NumPy has no bfloat16.
    return weights.float().cpu().numpy(), null_weights.float().cpu().numpy()


def likeliest_tokens(decoder: Decoder, inputs_embeds: Tensor, count: int) -> list[int]:
    """Return so many tokens after the prompt, the likeliest each time, and none from one that ends the answer on."""
    if count == 0:
        return []
    logits, cache = decoder.prefill(inputs_embeds)
    tokens: list[int] = []
    while len(tokens) < count and (token_id := int(logits.argmax())) not in decoder.eos_ids:
        tokens.append(token_id)
        logits = decoder.decode_one_token(token_id, cache)
    return tokens


@torch.inference_mode()
def read_weights(
    decoder: Decoder, inputs_embeds: Tensor, heads: Mapping[int, Sequence[int]], rows: Sequence[int], slots: Tensor
) -> Tensor:
    """Return the weights of the rows on the slots, as means over the rows, for the heads of each layer in turn.

    (S, D), (C,) -> (N, C). Raises CheckpointError for a decoder whose layers do not tell their weights.
    """
    found: dict[int, Tensor] = {}
    positions = torch.arange(len(inputs_embeds), device=inputs_embeds.device)
    row_numbers = torch.tensor(rows, device=inputs_embeds.device)

    def keep(layer: int, weights: Tensor) -> None:
        if layer in heads:
            chosen = weights[0, :, row_numbers][list(heads[layer])]  # (1, H, S, S) -> (N, R, S)
            found[layer] = chosen[..., slots].mean(1)

    with _watching(decoder, keep):
        decoder.read_with(EAGER, inputs_embeds, positions)
    if missing := sorted(set(heads) - set(found)):
        raise CheckpointError(
            f"decoder of type {decoder.config.model_type!r} does not tell the attention weights of layers {missing}; "
            "name another policy than attention"
        )
    return torch.cat([found[layer] for layer in heads])


@contextmanager
def _watching(decoder: Decoder, keep: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `keep` with the number of each layer and its weights (1, H, S, S), as long as the context is open."""

    def note(module: Any, args: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and torch.is_tensor(output[1]) and output[1].dim() == 4:
            keep(module.layer_idx, output[1])

    with ExitStack() as hooks:
        for module in decoder.backbone.base_model.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                hooks.callback(module.register_forward_hook(note).remove)
        yield
