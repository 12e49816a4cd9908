"""A run computes where it can, and a device that is not there is refused."""

import pytest
import torch

from refrag.errors import InvalidRequest
from refrag.evaluation.questions.execution import Execution


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    for has_gpu, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert Execution().torch_device == torch.device(expected)
    assert Execution("cpu").describe() == {"device": "cpu", "batch_rows": 1}


def test_many_rows_are_read_together_on_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [Execution(device, rows).rows_at_once for device, rows in ((None, None), ("cpu", None), ("cpu", 4))] == [
        64,
        1,
        4,
    ]
    with pytest.raises(InvalidRequest, match="batch_rows is 0; it must be at least 1"):
        Execution(batch_rows=0)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "tpu", ""])
def test_a_device_that_is_unknown_or_absent_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InvalidRequest, match=f"device is '{name}'; allowed here: cpu; PyTorch finds no GPU"):
        Execution(name)


def test_gpus_are_numbered_from_zero(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Execution("cuda:1").torch_device == torch.device("cuda", 1)
    with pytest.raises(InvalidRequest, match="device is 'cuda:2'; allowed here: cpu, cuda, cuda:0, cuda:1"):
        Execution("cuda:2")
