"""How hard the examples of a step are: numbers of chunks by the paper's geometric schedule, numbers of passages."""

import random

from refrag.training.settings import Curriculum


def chunk_count_weights(curriculum: Curriculum, progress: float) -> list[float]:
    """Share of the steps at this progress whose examples have each of the curriculum's numbers of chunks.

    In stage j there are a·r^j samples with c chunks, and a is such that every c has as many in all (the paper's
    Table 8). A batch holds a fixed number of tokens, thus 1/c as many samples, which the factor c makes up for.
    """
    stage = min(curriculum.num_stages - 1, int(progress * curriculum.num_stages))
    weights = []
    for num_chunks, ratio in zip(curriculum.num_chunks, curriculum.ratios, strict=False):
        total = sum(ratio**j for j in range(curriculum.num_stages))
        weights.append(num_chunks * ratio**stage / total)
    return [weight / sum(weights) for weight in weights]


def draw_num_chunks(rng: random.Random, curriculum: Curriculum, progress: float) -> int:
    return rng.choices(curriculum.num_chunks, chunk_count_weights(curriculum, progress))[0]


def draw_num_passages(rng: random.Random, max_passages: int, progress: float) -> int:
    return rng.randint(1, most_passages(max_passages, progress))


def most_passages(max_passages: int, progress: float) -> int:
    """One first, then a number that grows until two thirds of the training are over."""
    return 1 if progress < 0.25 else max(1, round(max_passages * min(1.0, progress * 1.5)))
