"""Chunk encoder: any Hugging Face encoder, one vector per chunk (paper §2)."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refrag.config import Pooling

# C chunks, L encoder tokens per chunk, E encoder width


class ChunkEncoder(nn.Module):
    """Encoder that reads each chunk by itself and pools its token states into one vector.  (C, L), (C, L) -> (C, E)

    The paper does not say how it pools. The default here is the mean, which later work found far better than CLS.
    """

    def __init__(self, backbone: PreTrainedModel, pooling: Pooling) -> None:
        super().__init__()
        # Never used here. It would get no gradients in training, and processes that train together wait for all.
        if getattr(backbone, "pooler", None) is not None:
            setattr(backbone, "pooler", None)  # noqa: B010  (typed as a module)
        self.backbone = backbone
        self.pooling = pooling

    @property
    def width(self) -> int:
        return self.backbone.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (C, L, E)
        if self.pooling == "cls":
            return states[:, 0]  # (C, E)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)  # (C, L, 1)
        # A row without tokens (a dummy that keeps a batch from being empty) pools to zeros, not to NaN.
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)  # (C, E)


def encode_in_batches(encoder: ChunkEncoder, input_ids: Tensor, attention_mask: Tensor, batch_size: int) -> Tensor:
    """Encode any number of chunks, `batch_size` at a time to bound memory.  (C, L), (C, L) -> (C, E)"""
    pieces = [
        encoder(ids, mask)
        for ids, mask in zip(input_ids.split(batch_size), attention_mask.split(batch_size), strict=True)
    ]
    return torch.cat(pieces)
