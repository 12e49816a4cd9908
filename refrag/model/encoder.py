"""Chunk encoder: any Hugging Face encoder, one vector per chunk (paper §2)."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refrag.config import Pooling

# C chunks, L encoder tokens per chunk, E encoder width


class ChunkEncoder(nn.Module):
    """Encode each chunk by itself and pool its token states into one vector.

    The paper does not say how it pools; mean is the default here because later work found it far better than CLS.
    """

    def __init__(self, backbone: PreTrainedModel, pooling: Pooling) -> None:
        super().__init__()
        # Never read here; trained beside others it would be a part without gradients, which processes wait for.
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
    """Encode many chunks with bounded memory.  (C, L) -> (C, E)"""
    pieces = [
        encoder(ids, mask)
        for ids, mask in zip(input_ids.split(batch_size), attention_mask.split(batch_size), strict=True)
    ]
    return torch.cat(pieces)
