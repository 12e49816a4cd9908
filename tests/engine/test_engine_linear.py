import pytest
import torch
from torch import nn

from refrag.engine.linear import (
    FEWEST_ROWS,
    FEWEST_ROWS_LARGE,
    LARGE,
    MOST_ROWS,
    FewRowsLinear,
    use_few_rows_linear,
)

LIMITS = FEWEST_ROWS_LARGE, FEWEST_ROWS, MOST_ROWS + 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_inputs", [24, LARGE // 40 + 1])
@pytest.mark.parametrize("num_rows", [1, *LIMITS, *(limit - 1 for limit in LIMITS)])
def test_few_rows_give_the_same_product(num_rows, num_inputs, bias):
    layer = nn.Linear(num_inputs, 40, bias=bias, dtype=torch.double)
    rows = torch.randn(1, num_rows, num_inputs, dtype=torch.double)
    expected = layer(rows)
    use_few_rows_linear(layer)
    torch.testing.assert_close(layer(rows), expected)


def test_only_plain_linear_layers_change():
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), Other(4, 4))
    use_few_rows_linear(model)
    assert [type(layer) for layer in model] == [FewRowsLinear, Other]
