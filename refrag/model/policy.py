"""Expansion policy: one logit per chunk from a two-layer transformer over chunk vectors (paper §2 and appendix).

Three ways in which it differs from the paper's: it can read the question's chunk vectors (the paper's never
sees the question); it reads chunk vectors, not projected embeddings, so that it fits any decoder; and each
chunk enters together with its neighbours in the passage, because a chunk often says "it" of what the one
before it names.
"""

import torch
from torch import Tensor, nn

# B contexts, C chunks, Q question chunks, E encoder width, W policy width

NUM_LAYERS = 2


class ExpansionPolicy(nn.Module):
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

    def forward(
        self,
        chunk_vectors: Tensor,  # (B, C, E)
        passages: Tensor,  # (B, C) number of the passage each chunk is cut from; −1 where there is no chunk
        question_vectors: Tensor,  # (B, Q, E)
        question_mask: Tensor,  # (B, Q) true where there is a question chunk
    ) -> Tensor:
        """Logits (B, C), −inf where there is no chunk. A question-blind policy ignores the question."""
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
            logits = logits + self._match(chunks, question, question_mask)
        return logits.masked_fill(passages < 0, float("-inf"))

    def _match(self, chunks: Tensor, question: Tensor, question_mask: Tensor) -> Tensor:
        """How well each chunk fits the question: the best of the scaled dot products with its chunks.  (B, C)"""
        products = self.key(chunks) @ self.query(question).transpose(1, 2)  # (B, C, Q)
        products = products / chunks.shape[-1] ** 0.5
        return products.masked_fill(~question_mask.unsqueeze(1), torch.finfo(products.dtype).min).amax(-1)


def with_neighbours(chunk_vectors: Tensor, passages: Tensor) -> Tensor:
    """Each vector between those of the chunk before and after it; zeros beyond the passage.  (B, C, E) -> (B, C, 3E)"""
    same = (passages[:, 1:] == passages[:, :-1]).unsqueeze(-1)  # (B, C − 1, 1)
    edge = torch.zeros_like(chunk_vectors[:, :1])
    before = torch.cat([edge, chunk_vectors[:, :-1] * same], 1)
    after = torch.cat([chunk_vectors[:, 1:] * same, edge], 1)
    return torch.cat([before, chunk_vectors, after], -1)


def pick_in_turn(logits: Tensor, budget: int, confidence: float = 1.0) -> list[int]:
    """Pick up to `budget` chunks one after another, each the likeliest of those left (paper, appendix).

    The logits (C,) are computed once. The paper always spends the budget; here picking ends once the picks hold
    `confidence` of the probability, since what follows only distracts the decoder.
    """
    num_picks = min(budget, int(torch.isfinite(logits).sum()))
    picks = logits.sort(descending=True, stable=True).indices[:num_picks]
    if confidence < 1:
        held = logits.softmax(-1)[picks].cumsum(-1)
        picks = picks[: int((held < confidence).sum()) + 1]
    return picks.tolist()


def sample_in_turn(logits: Tensor, budgets: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Random selections for each context, each pick from the softmax over the chunks left.  (B, C) -> (B, G, T)

    Row b has budgets[b] picks of different chunks in each of its G samples, then −1. Adding Gumbel noise to the
    logits once and sorting is the same as drawing from the masked softmax again and again.
    """
    noise = torch.rand((num_samples, *logits.shape), generator=generator).clamp(min=1e-9).to(logits.device)
    noisy = logits - (-noise.log()).log()  # (G, B, C)
    width = max(1, int(budgets.max()))
    picks = noisy.topk(width, -1).indices.transpose(0, 1)  # (B, G, T)
    beyond = torch.arange(width, device=logits.device) >= budgets.unsqueeze(-1)  # (B, T)
    return picks.masked_fill(beyond.unsqueeze(1), -1)


def log_probabilities_in_turn(logits: Tensor, picks: Tensor) -> Tensor:
    """Log-probability of each pick given those before it; 0 where there is none.  (B, C), (B, G, T) -> (B, G, T)"""
    remaining = logits.unsqueeze(1).expand(-1, picks.shape[1], -1)  # (B, G, C)
    steps = []
    for pick in picks.unbind(-1):  # (B, G)
        chosen = pick.clamp(min=0).unsqueeze(-1)
        log_probability = remaining.log_softmax(-1).gather(-1, chosen).squeeze(-1)
        steps.append(log_probability.masked_fill(pick < 0, 0.0))
        is_chosen = torch.zeros_like(remaining, dtype=torch.bool).scatter(-1, chosen, (pick >= 0).unsqueeze(-1))
        # A finite value: with all chunks picked, −inf everywhere would have no softmax.
        remaining = remaining.masked_fill(is_chosen, torch.finfo(logits.dtype).min)
    return torch.stack(steps, -1)
