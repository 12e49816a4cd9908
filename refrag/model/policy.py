"""Network of the learned policy: a logit per chunk from a two-layer transformer (paper §2 and appendix).

It differs from the paper's in four ways. It can read the question's chunk vectors; the paper's never sees the
question. It reads chunk vectors, not projected embeddings, so that it fits any decoder. It reads each chunk together
with its neighbours in the passage, because a chunk often says "it" of what the one before it names. And it learns what
to add to the score of `neighbourhood`, the policy without training, which it is until it has learned.
"""

import torch
from torch import Tensor, nn

from refrag.model.similarity import score_neighbourhoods, similarities

# B contexts, C chunks, Q question chunks, E encoder width, W policy width

NUM_LAYERS = 2
# Of the score without training, at the start: so sharp are its probabilities about right.
START_WEIGHT = 1.5


class ExpansionPolicy(nn.Module):
    """Network that scores the chunks of a context for expansion."""

    def __init__(self, encoder_width: int, width: int = 128, num_heads: int = 4, question_aware: bool = True) -> None:
        super().__init__()
        self.question_aware = question_aware
        self.chunk_in = nn.Linear(3 * encoder_width, width)
        self.question_in = nn.Linear(encoder_width, width)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, NUM_LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.neighbourhood_weight = nn.Parameter(torch.tensor(START_WEIGHT))
        if question_aware:
            self._start_from_neighbourhood()

    @torch.no_grad()
    def _start_from_neighbourhood(self) -> None:
        """Let the layers add nothing at the start, and see chunk and question alike.

        Both go through the same random projection, which about keeps angles. Weights that are all random take thousands
        of labelled questions to find out what is like the question.
        """
        own = self.question_in.weight.shape[1]
        self.chunk_in.weight.zero_()
        self.chunk_in.weight[:, own : 2 * own] = self.question_in.weight
        for linear in (self.chunk_in, self.question_in, self.query, self.key, self.score):
            linear.bias.zero_()
        nn.init.eye_(self.query.weight)
        for linear in (self.key, self.score):
            linear.weight.zero_()

    def forward(
        self,
        chunk_vectors: Tensor,  # (B, C, E)
        passages: Tensor,  # (B, C) number of the passage each chunk is cut from; −1 where there is no chunk
        question_vectors: Tensor,  # (B, Q, E)
        question_mask: Tensor,  # (B, Q) true where there is a question chunk
    ) -> Tensor:
        """Return logits (B, C), −inf where there is no chunk. Without `question_aware` the question is ignored."""
        present = passages >= 0
        states = self.chunk_in(with_neighbours(chunk_vectors, passages))  # (B, C, W)
        num_chunks = states.shape[1]
        if self.question_aware:
            states = torch.cat([states, self.question_in(question_vectors)], 1)  # (B, C + Q, W)
            present = torch.cat([present, question_mask], 1)
        # A softmax under a mask is torch's slowest step here, and a single context needs none.
        padding = None if bool(present.all()) else ~present
        states = self.norm(self.layers(states, src_key_padding_mask=padding))
        chunks, question = states[:, :num_chunks], states[:, num_chunks:]
        logits = self.score(chunks).squeeze(-1)  # (B, C)
        if self.question_aware:
            alike = score_neighbourhoods(similarities(chunk_vectors, question_vectors, question_mask), passages)
            logits = logits + self._match(chunks, question, question_mask) + self.neighbourhood_weight * alike.detach()
        return logits.masked_fill(passages < 0, float("-inf"))

    def _match(self, chunks: Tensor, question: Tensor, question_mask: Tensor) -> Tensor:
        """Return how well each chunk fits the question: its best scaled dot product with a question chunk.  (B, C)"""
        products = self.key(chunks) @ self.query(question).transpose(1, 2)  # (B, C, Q)
        products = products / chunks.shape[-1] ** 0.5
        return products.masked_fill(~question_mask.unsqueeze(1), torch.finfo(products.dtype).min).amax(-1)


def with_neighbours(chunk_vectors: Tensor, passages: Tensor) -> Tensor:
    """Join each vector with its neighbours', zeros beyond the passage: before, own, after.  (B, C, E) -> (B, C, 3E)"""
    same = (passages[:, 1:] == passages[:, :-1]).unsqueeze(-1)  # (B, C − 1, 1)
    edge = torch.zeros_like(chunk_vectors[:, :1])
    before = torch.cat([edge, chunk_vectors[:, :-1] * same], 1)
    after = torch.cat([chunk_vectors[:, 1:] * same, edge], 1)
    return torch.cat([before, chunk_vectors, after], -1)


def pick_in_turn(logits: Tensor, budget: int, confidence: float = 1.0) -> list[int]:
    """Pick up to `budget` chunks one after another, each the likeliest of those left (paper, appendix).

    Returns the numbers of the chunks, in the order of picking; −inf is never picked. The logits (C,) are computed once.
    The paper always spends the budget. Here picking ends once the picks hold `confidence` of the probability, since
    further chunks only distract the decoder.
    """
    num_picks = min(budget, int(torch.isfinite(logits).sum()))
    picks = logits.sort(descending=True, stable=True).indices[:num_picks]
    if confidence < 1:
        held = logits.softmax(-1)[picks].cumsum(-1)
        picks = picks[: int((held < confidence).sum()) + 1]
    return picks.tolist()


def sample_in_turn(logits: Tensor, budgets: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Draw G selections for each context, each pick from the softmax over the chunks left.  (B, C) -> (B, G, T)

    Every selection of row b has budgets[b] different chunks, then −1. Adding Gumbel noise to the logits once and
    sorting is the same as drawing from the masked softmax again and again. budgets: (B,), the largest of them is T.
    """
    noise = torch.rand((num_samples, *logits.shape), generator=generator).clamp(min=1e-9).to(logits.device)
    noisy = logits - (-noise.log()).log()  # (G, B, C)
    width = max(1, int(budgets.max()))
    picks = noisy.topk(width, -1).indices.transpose(0, 1)  # (B, G, T)
    beyond = torch.arange(width, device=logits.device) >= budgets.unsqueeze(-1)  # (B, T)
    return picks.masked_fill(beyond.unsqueeze(1), -1)


def log_probabilities_in_turn(logits: Tensor, picks: Tensor) -> Tensor:
    """Return each pick's log-probability given those before it; 0 for a pick of −1.  (B, C), (B, G, T) -> (B, G, T)"""
    remaining = logits.unsqueeze(1).expand(-1, picks.shape[1], -1)  # (B, G, C)
    steps = []
    for pick in picks.unbind(-1):  # (B, G)
        chosen = pick.clamp(min=0).unsqueeze(-1)
        log_probability = remaining.log_softmax(-1).gather(-1, chosen).squeeze(-1)
        steps.append(log_probability.masked_fill(pick < 0, 0.0))
        is_chosen = torch.zeros_like(remaining, dtype=torch.bool).scatter(-1, chosen, (pick >= 0).unsqueeze(-1))
        # Finite, because once all chunks are picked, −inf everywhere would have no softmax.
        remaining = remaining.masked_fill(is_chosen, torch.finfo(logits.dtype).min)
    return torch.stack(steps, -1)
