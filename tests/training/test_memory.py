"""Vectors that are remembered are those that the encoder gives, and it reads each chunk once."""

import pytest
import torch
from torch import nn

from refrag.teacher_forcing.batches import EncoderBatch
from refrag.training.memory import VectorMemory


class CountingEncoder(nn.Module):
    """Sums the ids weighed by their places, and counts the rows that it is given."""

    def __init__(self):
        super().__init__()
        self.num_rows = 0

    def forward(self, input_ids, attention_mask):
        self.num_rows += len(input_ids)
        return torch.stack([(input_ids * attention_mask).sum(1), (attention_mask > 0).sum(1)], 1).float()


def rows(*pairs, width=5):
    """Return a batch of rows, each given as ids and places."""
    pad = [([*ids, *[0] * (width - len(ids))], [*places, *[0] * (width - len(places))]) for ids, places in pairs]
    return EncoderBatch(torch.tensor([ids for ids, _ in pad]), torch.tensor([places for _, places in pad]))


A, B, SAME_IDS = ([3, 4], [1, 2]), ([5], [1]), ([3, 4], [1, 1])


@pytest.fixture
def encoder():
    return CountingEncoder()


def test_the_vectors_are_those_of_the_encoder_in_the_batchs_order(encoder):
    batch = rows(B, A, SAME_IDS, A)
    assert torch.equal(VectorMemory(encoder).encode(batch), encoder(batch.input_ids, batch.attention_mask))


def test_each_chunk_is_read_once_whatever_the_padding(encoder):
    memory = VectorMemory(encoder)
    first = memory.encode(rows(A, B, A))
    assert encoder.num_rows == 2
    assert torch.equal(memory.encode(rows(A, B, A, width=9)), first)
    assert encoder.num_rows == 2


def test_the_same_tokens_at_other_places_are_another_chunk(encoder):
    memory = VectorMemory(encoder)
    assert not torch.equal(memory.encode(rows(A)), memory.encode(rows(SAME_IDS)))


def test_the_oldest_are_forgotten_beyond_the_limit_but_never_those_of_the_batch(encoder):
    memory = VectorMemory(encoder, max_vectors=1)
    assert len(memory.encode(rows(A, B))) == 2
    memory.encode(rows(B))
    assert encoder.num_rows == 2
    memory.encode(rows(A))
    assert encoder.num_rows == 3
