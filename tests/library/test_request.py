"""Requests that a caller may make, and the messages that refuse all others."""

import pytest

from refrag.errors import InvalidRequest
from refrag.request import ExpansionOptions, Request, SamplingParams


@pytest.mark.parametrize(
    "options, named",
    [
        ({"expand_fraction": -0.1}, "expand_fraction is -0.1"),
        ({"expand_fraction": 1.5}, "expand_fraction is 1.5"),
        ({"expand_fraction": float("nan")}, "expand_fraction is nan"),
        ({"max_prompt_slots": 0}, "max_prompt_slots is 0; it must be at least 1"),
        ({"min_confidence": 1.5}, "min_confidence is 1.5; allowed is 0"),
    ],
)
def test_a_bad_request_says_what_was_given(options, named):
    with pytest.raises(InvalidRequest, match=named):
        ExpansionOptions(**options)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e-42}, r"temperature is 1e-42; it must be 0 \(greedy\) or at least 0.01"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0.0; it must be at least 0.01; 1 changes nothing"),
        ({"repetition_penalty": 1e-39}, r"repetition_penalty is 1e-39; it must be at least 0.01"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"stop_words": ("a",) * 17}, "17 words"),
        ({"stop_words": ("a" * 257,)}, "257 characters"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"stop_words": ("",)}, "empty word"),
    ],
)
def test_bad_sampling_says_what_was_given(options, named):
    with pytest.raises(InvalidRequest, match=named):
        SamplingParams(**options)


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(InvalidRequest, match="text_input is empty"):
        Request(question)
