"""The parity check itself: it must notice what it is there for."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_helpers import make_encoder
from onnx import numpy_helper

from refrag.errors import CheckpointError
from refrag.export.graphs import export_projector
from refrag.export.parity import Parity, check_projector, encoder_batches
from refrag.model.projector import Projector


def fill_weight(path: Path, name: str, value: float) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(name):
            damaged = np.full_like(numpy_helper.to_array(tensor), value)
            tensor.CopyFrom(numpy_helper.from_array(damaged, tensor.name))
    onnx.save(model, path)


@pytest.fixture(scope="module")
def projector() -> Projector:
    torch.manual_seed(0)
    return Projector(16, 16).eval()


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_damaged_weight_is_found_and_the_graph_named(value, projector, tmp_path):
    path = tmp_path / "model.onnx"
    export_projector(projector, path, "fp32")
    fill_weight(path, "down.bias", value)
    with pytest.raises(CheckpointError, match=r"projector: largest error .* \(allowed 1e-04\)"):
        check_projector(path, projector, make_encoder("bert"), 16, "fp32")


def test_an_error_that_is_not_a_number_never_holds():
    assert not Parity("projector", float("nan"), float("nan"), tolerance=1.0).holds


def test_batches_hold_single_full_padded_and_empty_chunks():
    masks = [mask for _, mask in encoder_batches(make_encoder("bert"), max_length=16)]
    assert {mask.shape[0] for mask in masks} >= {1, 2}
    num_tokens = torch.cat([mask.sum(1) for mask in masks])
    assert {0, 16} < set(num_tokens.tolist())


def test_batches_are_the_same_every_time():
    first, second = (list(encoder_batches(make_encoder("bert"), max_length=8)) for _ in range(2))
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))
