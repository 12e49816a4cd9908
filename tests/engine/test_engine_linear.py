import pytest
import torch
from torch import nn

from refrag.engine.linear import FEWEST_ROWS, MOST_ROWS, PACKED, FewRowsLinear, PackedLinear, speed_up_linear

# Of 40 outputs.
FEW_INPUTS, MANY_INPUTS = 24, PACKED // 40 + 1


def product(num_rows, num_inputs, bias, dtype):
    """Return the faster layer, its expected output and its output."""
    layer, rows = nn.Linear(num_inputs, 40, bias=bias, dtype=dtype), torch.randn(1, num_rows, num_inputs, dtype=dtype)
    with torch.inference_mode():
        expected = layer(rows)
        speed_up_linear(layer)
        return layer, expected, layer(rows)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, FEWEST_ROWS - 1, FEWEST_ROWS, MOST_ROWS, MOST_ROWS + 1])
def test_few_rows_give_the_same_product(num_rows, bias):
    layer, expected, given = product(num_rows, FEW_INPUTS, bias, torch.double)
    assert type(layer) is FewRowsLinear
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 17, 300])
def test_packed_weights_give_the_same_product(num_rows, bias):
    layer, expected, given = product(num_rows, MANY_INPUTS, bias, torch.float)
    assert type(layer) is PackedLinear
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_packed_weights_are_held_once():
    layer, _, _ = product(1, MANY_INPUTS, False, torch.float)
    assert layer.weight.untyped_storage().nbytes() == 4
    assert layer.weight.shape == (40, MANY_INPUTS)
    assert layer.weight.isnan().all()


def test_an_embedding_whose_weights_are_packed_elsewhere_keeps_them():
    embedding, head = nn.Embedding(PACKED // 8, 8), nn.Linear(8, PACKED // 8, bias=False)
    head.weight = embedding.weight
    speed_up_linear(nn.Sequential(embedding, head))
    assert not embedding(torch.tensor([3])).isnan().any()


def test_large_weights_of_another_type_are_not_packed():
    layer, _, _ = product(1, MANY_INPUTS, False, torch.double)
    assert type(layer) is nn.Linear


def test_only_plain_linear_layers_change():
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Other(4, 4))
    speed_up_linear(model)
    assert [type(layer) for layer in model] == [FewRowsLinear, Other]
