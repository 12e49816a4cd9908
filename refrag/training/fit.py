"""Checks that the parts of a pair fit each other, once and before training, rather than days into it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from refrag.context.chunking import Chunk, Chunker
from refrag.errors import TrainingError
from refrag.model.checkpoint import Checkpoint
from refrag.model.decoder import Decoder
from refrag.model.encoder_faults import encoder_fault
from refrag.model.faults import known_fault, packing_fault, tried_fault
from refrag.training.settings import AnyRun, AskingRun, Continue, Finetune, Reconstruct
from refrag.training.shapes import longest_text_slots
from refrag.training.stages.finetune import continuation_settings

# Chunks are measured with room for this many times `encoder_length` tokens.
AMPLE = 16


def refuse_misfits(checkpoint: Checkpoint, chunks: Sequence[Chunk]) -> None:
    """Try tokenizers, decoder and encoder on `chunks`; raise TrainingError unless every stage can use them."""
    _refuse_tokenizer(checkpoint)
    _refuse_decoder(checkpoint)
    _refuse_encoder(checkpoint)
    _refuse_truncation(checkpoint, chunks)


def _refuse_tokenizer(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.decoder_tokenizer
    if not tokenizer.is_fast:
        raise TrainingError(
            "the decoder's tokenizer is a slow one, without tokenizer.json; save the model with a fast one"
        )
    if tokenizer.eos_token_id is None:
        raise TrainingError("the decoder's tokenizer has no EOS token to end answers with; set its eos_token")
    _refuse_unknown_ids("decoder", tokenizer, checkpoint.decoder.vocab_size)
    if checkpoint.encoder_tokenizer is not None:
        backbone: Any = checkpoint.encoder.backbone
        num_rows = backbone.get_input_embeddings().num_embeddings
        _refuse_unknown_ids("encoder", checkpoint.encoder_tokenizer, num_rows)


def _refuse_unknown_ids(part: str, tokenizer: PreTrainedTokenizerFast, num_rows: int) -> None:
    highest = max(tokenizer.get_vocab().values())
    if highest >= num_rows:
        raise TrainingError(
            f"the {part}'s tokenizer has a token {highest}, but the {part} has embeddings for {num_rows} tokens; "
            f"resize its embeddings, or name the {part}'s own tokenizer"
        )


def _refuse_decoder(checkpoint: Checkpoint) -> None:
    """Refuse a decoder whose parts are not all of it: training calls them one by one, at positions of its own."""
    decoder = checkpoint.decoder
    fault = known_fault(decoder, checkpoint.config.max_prompt_slots) or tried_fault(decoder)
    if fault is not None:
        raise TrainingError(f"{type(decoder.backbone).__name__} cannot be the decoder: {fault}")


def refuse_unfit(checkpoint: Checkpoint, runs: Mapping[str, AnyRun]) -> None:
    """Raise TrainingError, with its name, for a run that the decoder or the window does not let be trained.

    runs: each starts from one before it, but for the first, which starts from the checkpoint.
    """
    inherited = checkpoint.config.trained_chunk_sizes
    chunk_sizes: dict[str, Sequence[int]] = {}
    for name, run in runs.items():
        chunk_sizes[name] = run.trained_chunk_sizes or chunk_sizes.get(run.start or "", inherited)
        try:
            _refuse_long_texts(run, chunk_sizes[name], checkpoint.config.max_prompt_slots)
            refuse_packing(checkpoint.decoder, run)
        except TrainingError as error:
            raise TrainingError(f"run {name!r}: {error}") from None


def _refuse_long_texts(run: AnyRun, chunk_sizes: Sequence[int], window: int) -> None:
    texts = continuation_settings(run, run.replay) if isinstance(run, Finetune) and run.replay is not None else run
    if not isinstance(texts, Reconstruct | Continue):
        return
    needed = longest_text_slots(chunk_sizes, texts)
    if needed > window:
        raise TrainingError(
            f"the longest texts of the curriculum, of {max(texts.curriculum.num_chunks)} chunks of "
            f"{max(chunk_sizes)} tokens, need {needed} slots, and max_prompt_slots of the pair is {window}; lower "
            "curriculum.num_chunks, continuation_tokens or the chunk sizes"
        )


def refuse_packing(decoder: Decoder, run: AnyRun) -> None:
    """Raise TrainingError if the run packs several examples into a row, and the decoder would let one see another."""
    if not isinstance(run, AskingRun) or run.row_slots is None:
        return
    if fault := packing_fault(decoder):
        raise TrainingError(
            f"row_slots is {run.row_slots}, but in a decoder of type {decoder.config.model_type!r} {fault}; set it to "
            "null, as with --set runs.NAME.row_slots=null, so that each example has a row of its own"
        )


def _refuse_truncation(checkpoint: Checkpoint, chunks: Sequence[Chunk]) -> None:
    config = checkpoint.config
    ample = replace(config, encoder_length=AMPLE * config.encoder_length)
    chunker = Chunker.of(ample, checkpoint.decoder_tokenizer, checkpoint.encoder_tokenizer)
    _, mask = chunker.encoder_inputs(chunks)
    longest = int((mask > 0).sum(1).max())
    if longest > config.encoder_length:
        raise TrainingError(
            f"encoder_length is {config.encoder_length}, but chunks of {max(map(len, chunks))} decoder tokens have up "
            f"to {longest} of the encoder's in a made-up document; set pair.encoder_length higher than that"
        )


def _refuse_encoder(checkpoint: Checkpoint) -> None:
    if fault := encoder_fault(checkpoint.encoder, checkpoint.config.encoder_length):
        raise TrainingError(f"{type(checkpoint.encoder.backbone).__name__} cannot be the encoder: {fault}")
