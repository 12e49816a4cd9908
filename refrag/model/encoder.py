"""Chunk encoder: any Hugging Face encoder, one vector per chunk (paper §2).

The paper does not say how it pools the encoder's token states into the vector. Here there are three ways:

mean      the mean of all states, which later work found far better than CLS
cls       the first state
ordered   Σ W_i s_i / n over the n decoder tokens of a chunk, where s_i is the mean state of the encoder tokens that
          begin in token i. A mean forgets the order of the tokens, without which few of them can be read back.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from refrag.config import Pooling
from refrag.context.alignment import FIRST_PLACE

# C chunks, L encoder tokens per chunk, K decoder tokens per chunk, E encoder width, V width of the chunk vectors


class ChunkEncoder(nn.Module):
    """Encoder that reads each chunk by itself and pools its token states into one vector.  (C, L), (C, L) -> (C, V)

    attention_mask: 0 where there is padding; for ordered pooling else the place, as `refrag.context.alignment` says.
    ordered: the pooling matrices, for that way of pooling alone.
    """

    def __init__(self, backbone: PreTrainedModel, pooling: Pooling, ordered: "OrderedPooling | None" = None) -> None:
        super().__init__()
        assert (ordered is not None) == (pooling == "ordered")
        # Never used here. It would get no gradients in training, and processes that train together wait for all. Not
        # None, since some families call it unasked.
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = nn.Identity()
        self.backbone = backbone
        self.pooling = pooling
        self.ordered = ordered

    @property
    def width(self) -> int:
        """Return the width of the chunk vectors, V."""
        return self.backbone.config.hidden_size if self.ordered is None else self.ordered.width

    @property
    def device(self) -> torch.device:
        """Return where the weights are, and where inputs have to be."""
        return self.backbone.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        is_token = (attention_mask > 0).to(attention_mask.dtype)
        states = self.backbone(input_ids=input_ids, attention_mask=is_token).last_hidden_state  # (C, L, E)
        if self.ordered is not None:
            return self.ordered(states, attention_mask)  # (C, V)
        if self.pooling == "cls":
            return states[:, 0]  # (C, E)
        weights = is_token.unsqueeze(-1).to(states.dtype)  # (C, L, 1)
        # A row without tokens (a dummy that keeps a batch from being empty) pools to zeros, not to NaN.
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)  # (C, E)


class OrderedPooling(nn.Module):
    """A matrix for each place in a chunk, which keeps the order of the tokens in the vector.

    All begin as the identity, so that the untrained vector is the mean. A chunk shorter than K is divided by its own
    number of tokens.
    """

    def __init__(self, chunk_size: int, encoder_width: int, width: int) -> None:
        super().__init__()
        self.chunk_size, self.width = chunk_size, width
        self.weight = nn.Parameter(torch.eye(encoder_width, width).repeat(chunk_size, 1, 1))  # (K, E, V)

    @torch.no_grad()
    def widened(self, chunk_size: int) -> "OrderedPooling":
        """Return the same pooling with places for chunks of `chunk_size` tokens; new ones start as the last one."""
        encoder_width = self.weight.shape[1]
        pooling = OrderedPooling(max(chunk_size, self.chunk_size), encoder_width, self.width)
        pooling.weight[: self.chunk_size] = self.weight
        pooling.weight[self.chunk_size :] = self.weight[-1]
        return pooling

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool the states by their places.  (C, L, E), (C, L) -> (C, V)"""
        places = torch.arange(self.chunk_size, device=states.device) + FIRST_PLACE
        belongs = (attention_mask.unsqueeze(1) == places.view(1, -1, 1)).to(states.dtype)  # (C, K, L)
        counts = belongs.sum(-1, keepdim=True)  # (C, K, 1)
        by_place = (belongs @ states) / counts.clamp(min=1)  # (C, K, E)
        num_places = (counts > 0).to(states.dtype).sum(1).clamp(min=1)  # (C, 1)
        return by_place.flatten(1) @ self.weight.flatten(0, 1) / num_places  # (C, K·E) -> (C, V)


def encode_in_batches(encoder: ChunkEncoder, input_ids: Tensor, attention_mask: Tensor, batch_size: int) -> Tensor:
    """Encode any number of chunks, `batch_size` at a time to bound memory.  (C, L), (C, L) -> (C, V)"""
    pieces = [
        encoder(ids, mask)
        for ids, mask in zip(input_ids.split(batch_size), attention_mask.split(batch_size), strict=True)
    ]
    return torch.cat(pieces)
