"""Selects the chunks that the checkpoint's network scores highest (paper, appendix; ours also reads the question)."""

import numpy as np
import torch
from torch import Tensor

from refrag.model.policy import ExpansionPolicy, pick_in_turn
from refrag.policies.base import Candidates, Policy, Selection

# C context chunks, Q question chunks, E encoder width


def select_learned(candidates: Candidates, budget: int) -> Selection:
    """Select the likeliest chunks, until the budget is spent or they hold the network's `confidence`.

    A chunk weighs what the network gives it of all probability.
    """
    trained = candidates.trained
    assert trained is not None, "select_chunks refuses a request that needs a network if there is none"
    logits = score_chunks(trained.network, candidates.passages, candidates.chunk_vectors, candidates.question_vectors)
    return Selection(pick_in_turn(logits, budget, trained.confidence), logits.softmax(0).cpu().numpy())


@torch.inference_mode()
def score_chunks(
    network: ExpansionPolicy, passages: np.ndarray, chunk_vectors: Tensor, question_vectors: Tensor
) -> Tensor:
    """Return the network's logit for each chunk.  (C,), (C, E), (Q, E) -> (C,)"""
    device = chunk_vectors.device
    question_mask = torch.ones(1, len(question_vectors), dtype=torch.bool, device=device)
    numbers = torch.as_tensor(passages).long().unsqueeze(0).to(device)
    return network(chunk_vectors.unsqueeze(0), numbers, question_vectors.unsqueeze(0), question_mask)[0]


POLICY = Policy("chunks that the trained policy scores highest", "vectors", select_learned, is_trained=True)
