import pytest
import torch
from torch import nn

from refrag.engine.linear import FEWEST_ROWS, MOST_ROWS, FewRowsLinear, use_few_rows_linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, FEWEST_ROWS - 1, FEWEST_ROWS, MOST_ROWS, MOST_ROWS + 1])
def test_few_rows_give_the_same_product(num_rows, bias):
    layer = nn.Linear(24, 40, bias=bias, dtype=torch.double)
    rows = torch.randn(1, num_rows, 24, dtype=torch.double)
    expected = layer(rows)
    use_few_rows_linear(layer)
    torch.testing.assert_close(layer(rows), expected)


def test_only_plain_linear_layers_change():
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Other(4, 4))
    use_few_rows_linear(model)
    assert [type(layer) for layer in model] == [FewRowsLinear, Other]
