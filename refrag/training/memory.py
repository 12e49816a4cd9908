"""Chunk vectors of a frozen encoder, which reads each chunk once however often training shows it."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from refrag.model.encoder import ChunkEncoder, encode_in_batches
from refrag.teacher_forcing.batches import EncoderBatch
from refrag.teacher_forcing.predict import encode

# N chunks of a batch, L encoder tokens per chunk, E width of the chunk vectors

# Vectors kept in the host's memory: half a gigabyte at a width of 576.
MAX_VECTORS = 200_000
# Chunks that the encoder reads at once, which bounds memory.
ENCODED_AT_ONCE = 1024


class VectorMemory:
    """Vectors by the tokens that the encoder read; beyond the limit, those that came first are forgotten."""

    def __init__(self, encoder: ChunkEncoder, max_vectors: int = MAX_VECTORS) -> None:
        self.encoder, self.max_vectors = encoder, max_vectors
        self._vectors: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def encode(self, batch: EncoderBatch) -> Tensor:
        """Return the vectors of the batch, without gradients.  (N, L) -> (N, E)

        Processes that hold a part of the encoder each read all, since they must call it equally often.
        """
        if any(isinstance(parameter, DTensor) for parameter in self.encoder.parameters()):
            return encode(self.encoder, batch)
        keys = _keys(batch)
        missing = {key: row for row, key in enumerate(keys) if key not in self._vectors}
        if missing:
            rows = list(missing.values())
            read = encode_in_batches(self.encoder, batch.input_ids[rows], batch.attention_mask[rows], ENCODED_AT_ONCE)
            self._vectors.update(zip(missing, read.cpu(), strict=True))
        vectors = torch.stack([self._vectors[key] for key in keys]).to(batch.input_ids.device)
        while len(self._vectors) > self.max_vectors:
            del self._vectors[next(iter(self._vectors))]
        return vectors


def _keys(batch: EncoderBatch) -> list[bytes]:
    """Return a key for each row, which the padding behind it does not change."""
    ids, mask = batch.input_ids.cpu().numpy(), batch.attention_mask.cpu().numpy()
    lengths = (mask > 0).sum(1).tolist()
    return [ids[row, :n].tobytes() + mask[row, :n].tobytes() for row, n in enumerate(lengths)]
