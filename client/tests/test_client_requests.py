"""A request's tensors have the right names, types and shapes, and bad requests are refused before sending."""

import json
from dataclasses import fields

import numpy as np
import pytest
from fake_triton_service import read_inputs

from refrag_client import GenerateOptions, GenerateRequest, InvalidRequest
from refrag_client.tensors import encode_request


def encode(**options):
    return read_inputs(encode_request(GenerateRequest("who?", **options), "refrag"))


def test_only_given_options_are_sent():
    assert set(encode()) == {"text_input", "stream"}


def test_every_option_has_the_type_of_the_server():
    inputs = encode(
        passages=["a", "b"],
        max_tokens=8,
        expand_fraction=0.5,
        max_prompt_slots=300,
        min_confidence=0.9,
        policy="learned",
        temperature=0,
        top_k=5,
        top_p=0.9,
        seed=2**64 - 1,
        repetition_penalty=1.1,
        min_tokens=2,
        log_probs=True,
        priority=-1,
        stop_words=["."],
        deadline_ms=100,
        shadow_fraction=0.5,
        exclude_input_in_output=True,
    )
    assert inputs["passages"].tolist() == [b"a", b"b"]
    assert inputs["seed"].dtype == np.uint64 and inputs["seed"].tolist() == [2**64 - 1]
    numbers = ("max_tokens", "max_prompt_slots", "top_k", "min_tokens", "priority", "deadline_ms")
    assert {inputs[name].dtype for name in numbers} == {np.dtype(np.int64)}
    reals = ("expand_fraction", "temperature", "top_p", "repetition_penalty", "shadow_fraction", "min_confidence")
    assert {inputs[name].dtype for name in reals} == {np.dtype(np.float32)}
    assert {inputs[name].dtype for name in ("stream", "log_probs", "exclude_input_in_output")} == {np.dtype(bool)}


def test_empty_and_unicode_passages_arrive_unchanged():
    passages = ["", "Zoë\0🚀", "x" * 5_000_000]
    assert [text.decode() for text in encode(passages=passages)["passages"]] == passages


@pytest.mark.parametrize("texts", [np.array(["a", "b"]), np.array(["a", "b"], object), iter("ab")])
def test_texts_may_come_in_arrays_and_iterators(texts):
    assert encode(passages=texts)["passages"].tolist() == [b"a", b"b"]


def test_turns_and_stop_words_may_come_in_arrays():
    inputs = encode(history=np.array(["Who?", "Ada."]), stop_words=np.array([".", "!"]))
    assert [json.loads(turn)["content"] for turn in inputs["history"]] == ["Who?", "Ada."]
    assert inputs["stop_words"].tolist() == [b".", b"!"]


@pytest.mark.parametrize("name", ["passages", "stop_words", "history"])
def test_an_empty_array_and_none_are_not_sent(name):
    assert name not in encode(**{name: np.array([], str)}) and name not in encode(**{name: None})


@pytest.mark.parametrize("option", [{"expand_fraction": -0.1}, {"max_tokens": 0}, {"policy": "best"}, {"top_p": 7.0}])
def test_limits_are_left_to_the_server(option):
    assert set(option) < set(encode(**option))


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ({"passages": "one text"}, "passages is a single str"),
        ({"passages": ["a", None]}, "passages holds a NoneType"),
        ({"passages": np.array([3, 4])}, "passages holds a int64; give str"),
        ({"passages": ["\ud800"]}, "lone surrogate at character 0"),
        ({"max_tokens": 2**63}, "max_tokens is 9223372036854775808, allowed is"),
        ({"max_tokens": True}, "max_tokens is True; give an int"),
        ({"max_tokens": 1.5}, "give an int"),
        ({"seed": -1}, "seed is -1, allowed is 0 to"),
        ({"temperature": "hot"}, "give a number"),
        ({"temperature": 1e300}, "allowed is up to"),
        ({"temperature": 1e-50}, "temperature is 1e-50, and FP32 can only hold 0 there"),
        ({"expand_fraction": 1.00000001}, "expand_fraction is 1.00000001, and FP32 can only hold 1 there"),
        ({"top_p": 0.999999999}, "FP32 can only hold 1 there; give that, or fewer digits"),
        ({"stream": "false"}, "give True or False"),
        ({"request_id": ""}, "give a unique, non-empty str"),
    ],
)
def test_what_no_tensor_can_hold_is_refused(option, what):
    with pytest.raises(InvalidRequest, match=what):
        encode(**option)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="max_token"):
        encode(max_token=3)


def test_keyword_options_are_the_fields_of_the_request():
    names = {field.name for field in fields(GenerateRequest)} - {"question", "passages"}
    assert set(GenerateOptions.__annotations__) == names


def test_request_ids_differ():
    assert GenerateRequest("who?").request_id != GenerateRequest("who?").request_id
