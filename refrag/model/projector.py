"""Projector: chunk vector → chunk embedding, a two-layer MLP as wide as the decoder (paper §2)."""

import torch
from torch import Tensor, nn

# C chunks, E encoder width, D decoder width, r rank

# Penalty of the regression, as a share of the mean square of the vectors.
RIDGE = 0.1


class Projector(nn.Module):
    """A linear layer to the decoder's width, GELU, and a second one.  (C, E) -> (C, D)"""

    def __init__(self, encoder_width: int, decoder_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(encoder_width, decoder_width)
        self.down = nn.Linear(decoder_width, decoder_width)

    def forward(self, chunk_vectors: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(chunk_vectors)))  # (C, E) -> (C, D)

    @torch.no_grad()
    def fit(self, chunk_vectors: Tensor, embeddings: Tensor) -> None:
        """Start as the linear map that comes nearest to `embeddings` (C, D) from `chunk_vectors` (C, E).

        It is found by ridge regression and has at most rank D/2, since gelu(x) − gelu(−x) = x takes two hidden units
        for each of its dimensions.
        """
        vector_mean, mean = chunk_vectors.mean(0), embeddings.mean(0)
        vectors, wanted = chunk_vectors - vector_mean, embeddings - mean
        moments = vectors.T @ vectors  # (E, E)
        penalty = RIDGE * moments.diagonal().mean() * torch.eye(len(moments), device=moments.device)
        linear = torch.linalg.solve(moments + penalty, vectors.T @ wanted).T  # (D, E)
        left, sizes, right = torch.linalg.svd(linear, full_matrices=False)
        rank = min(len(sizes), self.up.out_features // 2)
        inner = sizes[:rank].sqrt().unsqueeze(1) * right[:rank]  # (r, E)
        outer = left[:, :rank] * sizes[:rank].sqrt()  # (D, r)
        for parameter in self.parameters():
            parameter.zero_()
        self.up.weight[: 2 * rank] = torch.cat([inner, -inner])
        self.down.weight[:, : 2 * rank] = torch.cat([outer, -outer], 1)
        self.down.bias.copy_(mean - outer @ (inner @ vector_mean))

    @torch.no_grad()
    def match_scale(self, chunk_vectors: Tensor, token_embeddings: Tensor) -> None:
        """Rescale the output so that `chunk_vectors` (C, E) get the root mean square of `token_embeddings`.

        Token embeddings have a tiny norm: an input of another scale drowns them, and training has to unlearn it first.
        """
        self.down.bias.zero_()
        target = token_embeddings.float().pow(2).mean().sqrt()
        actual = self(chunk_vectors).float().pow(2).mean().sqrt()
        self.down.weight.mul_(target / actual)
