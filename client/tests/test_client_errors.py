"""A server's error message becomes a typed error."""

import json

import pytest

from refrag_client import Cancelled, DeadlineExceeded, InvalidRequest, Overloaded, ServerError
from refrag_client.errors import error_from_message


@pytest.mark.parametrize("error", [InvalidRequest, Overloaded, Cancelled, DeadlineExceeded])
@pytest.mark.parametrize("prefix", ["", "in ensemble 'refrag', ", "[request id: 7] {odd} message: "])
def test_json_errors_keep_type_and_message_behind_any_prefix(error, prefix):
    wire = json.dumps({"type": error.__name__, "message": 'say "a{b}"'})
    found = error_from_message(prefix + wire + "\n")
    assert type(found) is error and str(found) == 'say "a{b}"'


@pytest.mark.parametrize(
    "message",
    [
        "[request id: 7] unexpected inference input 'txt' for model 'refrag'",
        "[request id: 7] expected number of inputs between 1 and 14 but got 0 inputs for model 'refrag'. Got input(s) "
        "[], but missing required input(s) ['text_input']. Please provide all required input(s).",
        "[request id: 7] inference input 'max_tokens' data-type is 'FP32', but model 'refrag' expects 'INT32'",
        "unexpected shape for input 'max_tokens' for model 'refrag'. Expected [1], got [2].",
    ],
)
def test_complaints_about_inputs_are_invalid_requests(message):
    assert type(error_from_message(message)) is InvalidRequest


@pytest.mark.parametrize(
    "message",
    [
        "Request for unknown model: 'refrag' is not found",
        "in ensemble 'refrag', unexpected shape for input 'chunk_ids' for model 'chunk_encoder'",
        "Failed to process the request(s) for model instance 'decoder_0'",
        '{"type": 3}',
        "",
    ],
)
def test_everything_else_is_a_server_error(message):
    assert type(error_from_message(message)) is ServerError


def test_unknown_types_are_named():
    assert str(error_from_message('{"type": "SetupError", "message": "no GPU"}')) == "SetupError: no GPU"


def test_a_full_triton_queue_is_overloaded():
    assert type(error_from_message("[request id: 7] Exceeds maximum queue size")) is Overloaded
