"""Checks what a request carries beside its tensors: over HTTP, Triton makes a parameter of each key that is no input.

So a misspelt input and an option of another server's API arrive here, and would otherwise be ignored.
"""

import os
from collections.abc import Iterable, Mapping

from refrag.errors import InvalidRequest
from refrag.spelling import nearest_name
from refrag.variables import FORWARDED_HEADERS

Parameters = Mapping[str, str | int | float | bool]

# Inputs of the ensemble `refrag`, most of which pass by its first step; a test holds them to its config.pbtxt.
ENSEMBLE_INPUTS = (
    "text_input",
    "passages",
    "history",
    "whole_history",
    "expand_fraction",
    "max_prompt_slots",
    "policy",
    "sense_tokens",
    "min_confidence",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "repetition_penalty",
    "min_tokens",
    "log_probs",
    "priority",
    "stop_words",
    "stream",
    "exclude_input_in_output",
    "deadline_ms",
    "shadow_fraction",
)
# Inputs of the ensemble `refrag_rag`.
RAG_INPUTS = (
    "collection",
    "num_passages",
    "filter",
    "search_mode",
    *(name for name in ENSEMBLE_INPUTS if name != "passages"),
)

# What Triton and its clients send themselves; the id of an HTTP request arrives a second time as a parameter.
OF_TRITON = {
    "id",
    "priority",
    "timeout",
    "headers",
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "binary_data_output",
    "enable_empty_final_response",
}
OF_TRITON_PREFIX = "triton_"

# Options of other servers' APIs, with the values that ask for what every answer is anyway.
ALREADY_SO: dict[str, tuple[str | float | bool, ...]] = {
    "bad_words": ("",),
    "beam_width": (1,),
    "best_of": (1,),
    "echo": (False,),
    "exclude_input_in_output": (True,),
    "frequency_penalty": (0,),
    "ignore_eos": (False,),
    "length_penalty": (0, 1),
    "min_p": (0,),
    "n": (1,),
    "num_return_sequences": (1,),
    "presence_penalty": (0,),
    "return_context_logits": (False,),
    "return_generation_logits": (False,),
    "return_log_probs": (False,),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
}

# Their names for inputs of ours, where the spelling does not lead there.
OTHER_NAMES = {
    "context": "passages",
    "documents": "passages",
    "input": "text_input",
    "inputs": "text_input",
    "logprobs": "log_probs",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_output_len": "max_tokens",
    "messages": "history",
    "min_length": "min_tokens",
    "prompt": "text_input",
    "query": "text_input",
    "question": "text_input",
    "random_seed": "seed",
    "request_output_len": "max_tokens",
    "return_log_probs": "log_probs",
    "stop": "stop_words",
    "stop_sequences": "stop_words",
    "stop_words_list": "stop_words",
    "top_logprobs": "log_probs",
}


def refuse_unknown(parameters: Parameters, inputs: Iterable[str]) -> None:
    """Raise InvalidRequest unless every parameter is Triton's own or asks for nothing that is not so anyway.

    inputs: names of the inputs that the caller could have meant.
    """
    passing = OF_TRITON.union(_forwarded_headers()) if parameters else OF_TRITON
    refused = [
        name
        for name, value in parameters.items()
        if not (name.lower() in passing or name.startswith(OF_TRITON_PREFIX) or _is_already_so(name, value))
    ]
    if refused:
        inputs = list(inputs)
        advice = "; ".join(_advise(name, parameters[name], inputs) for name in sorted(refused))
        raise InvalidRequest(f"{advice} (the inputs are {', '.join(inputs)})")


def _forwarded_headers() -> set[str]:
    return {name.strip().lower() for name in os.environ.get(FORWARDED_HEADERS, "").split(",")} - {""}


def _is_already_so(name: str, value: str | float | bool) -> bool:
    # True equals 1, and no number stands for a switch.
    return any(isinstance(value, bool) == isinstance(each, bool) and value == each for each in ALREADY_SO.get(name, ()))


def _advise(name: str, value: str | float | bool, inputs: list[str]) -> str:
    if name in inputs:
        return f"{name} came as a parameter, where nothing reads it; send it as an input tensor"
    if name in ALREADY_SO and name not in OTHER_NAMES:
        allowed = " or ".join(map(repr, ALREADY_SO[name]))
        return f"{name} is {value!r}, which is not to be had here; leave it out, or send {allowed}"
    meant = OTHER_NAMES.get(name)
    near = meant if meant in inputs else nearest_name(name, inputs)
    return f"{name} is no input; " + (f"is {near} meant?" if near else "leave it out")
