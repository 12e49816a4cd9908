"""A decoder is refused if two orders of the same sums lie further apart than rounding explains."""

from types import SimpleNamespace

import pytest
import torch

from refrag.model.faults import tolerance


def decoder_of(num_layers, dtype):
    weight = torch.zeros(1, dtype=dtype)
    config = SimpleNamespace(num_hidden_layers=num_layers)
    return SimpleNamespace(token_embeddings=SimpleNamespace(weight=weight), config=config)


@pytest.mark.parametrize(
    ("num_layers", "dtype", "limit"),
    [
        (2, torch.bfloat16, 0.05),
        (8, torch.bfloat16, 0.05),
        (32, torch.bfloat16, 0.1),
        (32, torch.float16, 0.04),
        (2, torch.float32, 1e-3),
        (80, torch.float32, 1e-3),
    ],
)
def test_half_precision_allows_for_many_layers_and_float32_does_not(num_layers, dtype, limit):
    assert tolerance(decoder_of(num_layers, dtype)) == pytest.approx(limit)
