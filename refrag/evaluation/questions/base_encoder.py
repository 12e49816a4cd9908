"""The base encoder of a checkpoint as it was before training: the usual search by cosine, which costs nothing."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

from refrag.base_models.cache import resolve
from refrag.base_models.reference import BaseModel
from refrag.context.chunking import PackedChunks
from refrag.errors import InvalidRequest
from refrag.model.backbones import load_pretrained
from refrag.model.checkpoint import Checkpoint
from refrag.model.encoder import ChunkEncoder
from refrag.teacher_forcing.batches import EncoderBatch, encoder_batch
from refrag.teacher_forcing.predict import encode

# C chunks, E encoder width

NAME = "base similarity"


def require_base(checkpoint: Checkpoint) -> BaseModel:
    """Return the base of the encoder, or raise InvalidRequest if the checkpoint names none."""
    base = checkpoint.config.encoder_base
    if base is None:
        raise InvalidRequest(
            f"the selection {NAME!r} compares chunks by the encoder as it was before training, and the checkpoint "
            "names no encoder_base; leave the condition out"
        )
    return base


class BaseEncoder:
    """The encoder that a checkpoint names as its base, on the same device; a vector is the mean of its token states."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load it, or raise InvalidRequest if the checkpoint names none."""
        self.chunker = checkpoint.chunker
        self.tokenizer = checkpoint.encoder_tokenizer or checkpoint.decoder_tokenizer
        encoder = ChunkEncoder(load_pretrained(AutoModel, resolve(require_base(checkpoint))), "mean")
        self.encoder = encoder.eval().to(checkpoint.decoder.device)

    @torch.inference_mode()
    def rank(self, chunks: PackedChunks, question: str) -> list[int]:
        """Return the numbers of the chunks, the one nearest to the question by cosine first."""
        batch = encoder_batch(self.chunker, chunks).to(self.encoder.device)
        vectors = functional.normalize(encode(self.encoder, batch), dim=-1)  # (C, E)
        similarities = vectors @ self._read(question)  # (C,)
        return similarities.argsort(descending=True, stable=True).tolist()

    def _read(self, question: str) -> Tensor:
        """Return the vector of the question, read as a whole.  -> (E,)"""
        # Some models have more positions than they can use; the tokenizer knows, or names a number beyond all.
        longest = min(self.tokenizer.model_max_length, self.encoder.backbone.config.max_position_embeddings)
        read = self.tokenizer([question], return_tensors="pt", truncation=True, max_length=longest)
        batch = EncoderBatch(read["input_ids"], read["attention_mask"]).to(self.encoder.device)
        return encode(self.encoder, batch)[0]
