"""Precision that `mixed_precision: auto` chooses, by what the machine computes fast."""

import pytest
import torch

from refrag.training.loop import choose_precision


def test_auto_is_bfloat16_on_a_gpu_that_computes_it(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision("auto") == "no"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose_precision("auto") == "bf16"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_precision("auto") == "no"
    assert choose_precision("bf16") == "bf16"


@pytest.mark.parametrize(("capabilities", "precision"), [({"amx_bf16": True}, "bf16"), ({"avx2": True}, "no")])
def test_auto_is_bfloat16_on_a_cpu_that_multiplies_matrices_of_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto") == precision
    assert choose_precision("no") == "no"
