"""Whole copies of checkpoints: what is written, once, and without a word."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from refrag.model.whole import save_whole_copy


@pytest.fixture
def saved(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def dtypes_in(file):
    return {weight.dtype for weight in load_file(file).values()}


def test_the_decoder_alone_is_rounded_and_is_written_once(saved, tmp_path, monkeypatch):
    written, save = [], LlamaForCausalLM.save_pretrained

    def save_and_count(model, folder, **options):
        written.append({weight.dtype for weight in options["state_dict"].values()})
        save(model, folder, **options)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_and_count)
    save_whole_copy(saved, tmp_path / "whole")
    assert written == [{torch.float16}]
    assert dtypes_in(tmp_path / "whole" / "decoder" / "model.safetensors") == {torch.float16}
    for name in ("encoder/model", "projector", "policy"):
        assert dtypes_in(tmp_path / "whole" / f"{name}.safetensors") == {torch.float32}


def test_saving_shows_no_progress_bars_and_leaves_them_as_they_were(tiny_checkpoint, tmp_path, capfd):
    assert transformers_logging.is_progress_bar_enabled()
    tiny_checkpoint.save(tmp_path / "checkpoint")
    assert capfd.readouterr().err == ""
    assert transformers_logging.is_progress_bar_enabled()
