"""Reads one short mixed prompt in both ways: at once by the decoder itself, and in parts by the engine."""

from itertools import pairwise

import torch

from refrag.decoders.base import MixedPrompt
from refrag.engine.block_pool import slot_runs
from refrag.engine.runner import Runner, Segment
from refrag.errors import CheckpointError
from refrag.model.decoder import Decoder
from refrag.model.faults import difference, tolerance

PROBE_PARTS = (0, 9, 15, 16)
PROBE_SLOTS = PROBE_PARTS[-1]
# Every third slot is a chunk embedding, in each of the parts.
CHUNK_PERIOD = 3


@torch.inference_mode()
def probe(runner: Runner, block_size: int) -> None:
    """Raise CheckpointError unless a prompt read in parts by the runner gets the logits of the prompt read at once.

    The prompt is short, and its blocks are scattered over the runner's cache.
    """
    decoder, prompt = runner.decoder, probe_prompt(runner.decoder)
    num_blocks = -(-PROBE_SLOTS // block_size)
    runs = slot_runs([*range(1, num_blocks), 0], block_size)
    embedded = decoder.embed_prompt(prompt.input_ids.to(runner.device), prompt.chunk_embeddings)
    expected = decoder.backbone(inputs_embeds=embedded.unsqueeze(0), use_cache=False).logits[0]  # (S, V)
    for start, stop in pairwise(PROBE_PARTS):
        logits = runner.run([Segment(prompt, [], runs, start, stop)])[0]
        differs, limit = difference(logits, expected[stop - 1]), tolerance(decoder)
        if not differs <= limit:
            raise CheckpointError(
                f"decoder of type {decoder.config.model_type!r} is not supported: read in parts, a prompt gets other "
                f"logits than read at once; they differ by {differs:.1%} of the largest logit, the limit is {limit:.1%}"
            )


def probe_prompt(decoder: Decoder) -> MixedPrompt:
    """Return a prompt of tokens and of chunk embeddings that are no token's: each is the mean of two."""
    input_ids = torch.arange(1, PROBE_SLOTS + 1) * 7919 % decoder.vocab_size
    places = torch.arange(CHUNK_PERIOD - 1, PROBE_SLOTS, CHUNK_PERIOD)
    pairs = torch.stack([input_ids[places], input_ids[places - 1]]).to(decoder.token_embeddings.weight.device)
    input_ids[places] = decoder.vocab_size + torch.arange(len(places))
    return MixedPrompt(input_ids, decoder.token_embeddings(pairs).mean(0))
