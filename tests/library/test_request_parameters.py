"""Triton's own parameters of a request pass, and wishes that would be ignored are refused by name."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from refrag.errors import InvalidRequest
from refrag.export.repository import TEMPLATES
from refrag.serving.request_parameters import ENSEMBLE_INPUTS, refuse_unknown


def test_the_inputs_are_those_of_the_ensemble():
    text = (TEMPLATES / "refrag" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert set(ENSEMBLE_INPUTS) == {tensor.name for tensor in config.input}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"id": "a", "timeout": 5, "sequence_id": 1, "priority": 2, "binary_data_output": True},
        {"triton_enable_empty_final_response": True},
        {"bad_words": "", "beam_width": 1, "presence_penalty": 0.0, "echo": False},
    ],
)
def test_what_is_tritons_own_or_so_anyway_passes(parameters):
    refuse_unknown(parameters, ENSEMBLE_INPUTS)


@pytest.mark.parametrize(
    ("parameters", "advice"),
    [
        ({"max_new_tokens": 5}, r"max_new_tokens is no input; is max_tokens meant\?"),
        ({"Max-Tokens": 5}, r"Max-Tokens is no input; is max_tokens meant\?"),
        ({"random_seed": 5}, r"is seed meant\?"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is 0.5, .* leave it out, or send 0"),
        ({"n": True}, "n is True, .* or send 1"),
        ({"user": "me"}, "user is no input; leave it out"),
        ({"max_tokens": 5}, "max_tokens came as a parameter.* send it as an input tensor"),
        ({"b_unknown": 1, "a_unknown": 1}, "a_unknown is no input; leave it out; b_unknown is no input"),
    ],
)
def test_anything_else_is_refused_with_what_to_do(parameters, advice):
    with pytest.raises(InvalidRequest, match=advice):
        refuse_unknown(parameters, ENSEMBLE_INPUTS)


def test_a_name_means_what_the_model_has(monkeypatch):
    with pytest.raises(InvalidRequest, match=r"random_sed is no input; is random_seed meant\?"):
        refuse_unknown({"random_sed": 1}, ["random_seed", "input_ids"])


def test_headers_that_the_server_forwards_pass_once_they_are_named(monkeypatch):
    headers = {"X-Request-Id": "7", "traceparent": "00"}
    with pytest.raises(InvalidRequest, match="X-Request-Id is no input"):
        refuse_unknown(headers, ENSEMBLE_INPUTS)
    monkeypatch.setenv("REFRAG_FORWARDED_HEADERS", "x-request-id, traceparent")
    refuse_unknown(headers, ENSEMBLE_INPUTS)
