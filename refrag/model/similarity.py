"""How like the question chunks are, and what a chunk is worth beside others like it; both need no training.

A chunk often says "it" of what the one before it names, and an answer may stand beside the words of the question, not
among them. So a chunk's cosine counts with its neighbours', and with that of the likest chunk of its passage.
"""

import torch
from torch import Tensor
from torch.nn import functional

# … any number of contexts, or none, C chunks, Q question chunks, E encoder width

# How much the mean of the chunks beside it, and the best of its passage, add to a chunk's own: what `refrag heads find`
# found for the demo's pair, on validation rows.
NEIGHBOURS, PASSAGE = 0.5, 0.25
# Scores that differ less than so do not differ.
LEAST_DEVIATION = 1e-6


def similarities(chunk_vectors: Tensor, question_vectors: Tensor, question_mask: Tensor | None = None) -> Tensor:
    """Return the cosine of each chunk's vector with the question's.  (…, C, E), (…, Q, E), (…, Q) -> (…, C)

    A question of several chunks counts as the mean of their directions. question_mask: true where there is one.
    """
    directions = functional.normalize(question_vectors, dim=-1)
    if question_mask is None:
        question = directions.mean(-2)
    else:
        present = question_mask.unsqueeze(-1)
        question = (directions * present).sum(-2) / present.sum(-2).clamp(min=1)
    # Row by row, so that chunks of the same text tie, and the first is taken: a matrix product may round them apart.
    return (functional.normalize(chunk_vectors, dim=-1) * question.unsqueeze(-2)).sum(-1)


def rank(scores: Tensor) -> list[int]:
    """Return the numbers of the chunks, the highest score first; of equal ones the first chunk.  (C,) -> C"""
    numbers: list[int] = scores.argsort(descending=True, stable=True).tolist()
    return numbers


def score_neighbourhoods(similarities: Tensor, passages: Tensor) -> Tensor:
    """Return each chunk's score, by its similarity and by what stands around it.  (…, C), (…, C) -> (…, C)

    passages: number of each chunk's passage, −1 where there is no chunk; the score there counts for nothing.
    """
    return spread(standardised(similarities, passages >= 0), passages, NEIGHBOURS, PASSAGE)


def standardised(scores: Tensor, present: Tensor | None = None) -> Tensor:
    """Return the scores with mean 0 and deviation 1, or all 0 if they are alike, and 0 where none is.  (…, C)

    present: true where there is a score (default: everywhere).
    """
    present = torch.ones_like(scores, dtype=torch.bool) if present is None else present
    count = present.sum(-1, keepdim=True).clamp(min=1)
    centred = (scores - (scores * present).sum(-1, keepdim=True) / count) * present
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=LEAST_DEVIATION)


def spread(scores: Tensor, passages: Tensor, neighbours: float, passage: float) -> Tensor:
    """Return the scores with a part of those of their neighbours in the passage, and of the passage's best.  (…, C)

    neighbours: share of the mean score beside a chunk, 0 where it has none. passage: share of the best one.
    """
    same = passages[..., 1:] == passages[..., :-1]
    before, after = functional.pad(same, (1, 0)), functional.pad(same, (0, 1))
    sums = scores.roll(1, -1) * before + scores.roll(-1, -1) * after
    smoothed = scores + neighbours * sums / (before.int() + after.int()).clamp(min=1)
    numbers = passages.long() - passages.min()
    lowest = smoothed.new_full((*scores.shape[:-1], int(numbers.max()) + 1), float("-inf"))
    best = lowest.scatter_reduce(-1, numbers, smoothed, "amax")
    return smoothed + passage * best.gather(-1, numbers)
