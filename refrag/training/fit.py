"""Checks that the parts of a pair fit each other, once and before training, rather than days into it."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from refrag.context.chunking import Chunk, Chunker
from refrag.errors import TrainingError
from refrag.model.checkpoint import Checkpoint

# A few tokens are enough to try a decoder: what its family does to embeddings or logits shows with any of them.
NUM_TRIED_TOKENS = 8
TOLERANCE = 1e-3
# Chunks are measured with room for this many times `encoder_length` tokens.
AMPLE = 16


def refuse_misfits(checkpoint: Checkpoint, chunks: Sequence[Chunk]) -> None:
    """Try tokenizers, decoder and encoder on `chunks`; raise TrainingError unless every stage can use them."""
    _refuse_tokenizer(checkpoint)
    _refuse_decoder(checkpoint, chunks)
    _refuse_truncation(checkpoint, chunks)
    _refuse_encoder(checkpoint, chunks)


def _refuse_tokenizer(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.decoder_tokenizer
    if not tokenizer.is_fast:
        raise TrainingError(
            "the decoder's tokenizer is a slow one, without tokenizer.json; save the model with a fast one"
        )
    if tokenizer.eos_token_id is None:
        raise TrainingError("the decoder's tokenizer has no EOS token to end answers with; set its eos_token")
    highest, vocab_size = max(tokenizer.eos_token_id, tokenizer.bos_token_id or 0), checkpoint.decoder.vocab_size
    if highest >= vocab_size:
        raise TrainingError(
            f"the decoder's tokenizer has a token {highest}, but the decoder has embeddings for {vocab_size} tokens; "
            "resize its embeddings, or name the decoder's own tokenizer"
        )


@torch.no_grad()
def _refuse_decoder(checkpoint: Checkpoint, chunks: Sequence[Chunk]) -> None:
    """Refuse a decoder whose own forward gives other logits: training calls its parts one by one instead."""
    decoder = checkpoint.decoder
    input_ids = torch.tensor([[token for chunk in chunks for token in chunk.token_ids][:NUM_TRIED_TOKENS]])
    embedded = decoder.embed_prompt(input_ids, torch.zeros(0, decoder.width))
    ours, own = decoder.logits(decoder.read(embedded)), decoder.backbone(input_ids=input_ids).logits
    if not torch.allclose(ours, own, atol=TOLERANCE, rtol=TOLERANCE):
        raise TrainingError(
            f"{type(decoder.backbone).__name__} does more than embeddings, layers, head and soft-capping: its own "
            f"logits are up to {float((ours - own).abs().max()):.3g} away from ours; add what it does to "
            "refrag.model.decoder, or name another decoder"
        )


def _refuse_truncation(checkpoint: Checkpoint, chunks: Sequence[Chunk]) -> None:
    config = checkpoint.config
    ample = replace(config, encoder_length=AMPLE * config.encoder_length)
    _, mask = Chunker(ample, checkpoint.decoder_tokenizer, checkpoint.encoder_tokenizer).encoder_inputs(chunks)
    longest = int((mask > 0).sum(1).max())
    if longest > config.encoder_length:
        raise TrainingError(
            f"encoder_length is {config.encoder_length}, but chunks of {max(map(len, chunks))} decoder tokens have up "
            f"to {longest} of the encoder's in a made-up document; set pair.encoder_length higher than that"
        )


@torch.no_grad()
def _refuse_encoder(checkpoint: Checkpoint, chunks: Sequence[Chunk]) -> None:
    """Refuse an encoder that has no positions for `encoder_length` tokens; max_position_embeddings may promise more."""
    length, backbone = checkpoint.config.encoder_length, checkpoint.encoder.backbone
    ids, _ = checkpoint.chunker.encoder_inputs(chunks[:1])
    # Any token but padding, which RoBERTa does not count as a position.
    input_ids = torch.full((1, length), int(ids[0, 0]))
    try:
        checkpoint.encoder(input_ids, torch.ones_like(input_ids))
    except (IndexError, RuntimeError) as error:
        raise TrainingError(
            f"the encoder cannot read encoder_length = {length} tokens: {error}; its max_position_embeddings is "
            f"{getattr(backbone.config, 'max_position_embeddings', None)}, of which families like RoBERTa leave out "
            "pad_token_id + 1; lower pair.encoder_length, and with it the chunk sizes"
        ) from None
