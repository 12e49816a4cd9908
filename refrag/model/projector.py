"""Projector: chunk vector → chunk embedding, a two-layer MLP as wide as the decoder (paper §2)."""

import torch
from torch import Tensor, nn

# C chunks, E encoder width, D decoder width


class Projector(nn.Module):
    """A linear layer to the decoder's width, GELU, and a second one.  (C, E) -> (C, D)"""

    def __init__(self, encoder_width: int, decoder_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(encoder_width, decoder_width)
        self.down = nn.Linear(decoder_width, decoder_width)

    def forward(self, chunk_vectors: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(chunk_vectors)))  # (C, E) -> (C, D)

    @torch.no_grad()
    def match_scale(self, chunk_vectors: Tensor, token_embeddings: Tensor) -> None:
        """Rescale the output so that `chunk_vectors` (C, E) get the root mean square of `token_embeddings`.

        Token embeddings have a tiny norm: an input of another scale drowns them, and training has to unlearn it first.
        """
        self.down.bias.zero_()
        target = token_embeddings.float().pow(2).mean().sqrt()
        actual = self(chunk_vectors).float().pow(2).mean().sqrt()
        self.down.weight.mul_(target / actual)
