"""The last layer is computed only for the slots whose logits are asked for, and the logits stay the same."""

import logging

import pytest
import torch
from engine_helpers import (
    ARCHITECTURES,
    answer_alone,
    make_decoder,
    make_engine,
    make_prompt,
    make_request,
    mixed_requests,
    run,
)
from transformers import AutoModelForCausalLM, GPT2Config

from refrag.engine.runner import Segment
from refrag.engine.support import layer_shapes, separable_last_layer
from refrag.model.decoder import Decoder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_spared_it(name, tokenizer):
    engine = make_engine(make_decoder(name), tokenizer)
    assert engine.runner.last_layer is engine.runner.decoder.backbone.base_model.layers[-1]


@pytest.mark.parametrize("lengths", [[1], [9], [7, 1, 12]])
def test_as_many_rows_come_to_its_end_as_there_are_sequences(llama, tokenizer, lengths):
    engine, nums_rows = make_engine(llama, tokenizer), []
    layers = llama.backbone.base_model.layers
    hooks = [
        layer.mlp.register_forward_hook(lambda _, inputs, __: nums_rows.append(inputs[0].shape[1])) for layer in layers
    ]
    segments = [Segment(make_prompt(n, n), [], [(64 * i, 64 * i + n)], 0, n) for i, n in enumerate(lengths)]
    engine.runner.run(segments)
    for hook in hooks:
        hook.remove()
    assert nums_rows == [sum(lengths)] * (len(layers) - 1) + [len(lengths)]


def test_nothing_is_left_on_the_decoder_even_if_a_pass_fails(llama, tokenizer, monkeypatch):
    engine = make_engine(llama, tokenizer)
    monkeypatch.setattr(llama.backbone.base_model.norm, "forward", lambda states: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.runner.run([Segment(make_prompt(9), [], [(0, 9)], 0, 9)])
    assert not engine.runner.last_layer._forward_pre_hooks


def test_a_layer_that_cannot_be_parted_is_computed_for_all_rows(llama, tokenizer, monkeypatch, caplog):
    """The decoder names the wrong layer as its last."""
    monkeypatch.setattr(Decoder, "last_layer", property(lambda decoder: decoder.backbone.base_model.layers[0]))
    with caplog.at_level(logging.WARNING):
        engine = make_engine(llama, tokenizer)
    assert engine.runner.last_layer is None
    assert "the last layer is computed for all slots of a prompt" in caplog.text
    requests = mixed_requests(3)
    assert run(engine, requests) == [answer_alone(llama, tokenizer, request) for request in requests]


def test_a_pass_whose_rows_do_not_come_out_as_asked_is_found_out(llama):
    """The layer's keys and values are right, but its output rows are wrong."""
    shapes, layer = layer_shapes(llama, max_prompt_slots=512), llama.last_layer
    assert separable_last_layer(llama, shapes) is layer
    hook = layer.register_forward_hook(lambda _, args, output: output.roll(1, -1) if args[0].shape[1] == 1 else output)
    assert separable_last_layer(llama, shapes) is None
    hook.remove()


def test_a_decoder_that_names_its_layers_otherwise_answers_too(tokenizer):
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "n_embd": 48, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    decoder = Decoder(AutoModelForCausalLM.from_config(GPT2Config(**shape)).eval().double())
    engine = make_engine(decoder, tokenizer)
    assert engine.runner.last_layer is None
    request = make_request(make_prompt(30))
    assert run(engine, [request]) == [answer_alone(decoder, tokenizer, request)]
