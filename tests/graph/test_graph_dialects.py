"""Options of other servers' APIs mean what they mean there, or are refused by name; none is ignored.

Each table has all names that an API takes for generating text, each with a value, and what we are to make of it: the
options of our client that give the same answer, or REFUSED.
"""

import json
import urllib.error

import numpy as np
import pytest
from raw_requests import as_bytes, post, raw_request

from refrag.serving.request_parameters import ENSEMBLE_INPUTS
from refrag_client import InvalidRequest
from refrag_client.errors import error_from_message

pytestmark = pytest.mark.server

QUESTION, PASSAGES = "What does Mara Tolen keep?", ["Mara Tolen keeps a parrot.", "Odo Marsk naps."]
# Drawn, so that every option that is served changes the answer or could.
DRAWN = {"max_tokens": 8, "temperature": 1.5, "seed": 4}
REFUSED = None

# Inputs of the models `ensemble` and `tensorrt_llm_bls` of TensorRT-LLM's backend, of old and new releases.
TENSORRT_LLM = [
    ("text_input", "Who naps?", {"question": "Who naps?"}),
    ("decoder_text_input", "a", REFUSED),
    ("image_input", 1, REFUSED),
    ("max_tokens", 5, {"max_tokens": 5}),
    ("bad_words", "", {}),
    ("bad_words", "cat", REFUSED),
    ("stop_words", "", {}),
    ("stop_words", [""], {}),
    ("stop_words", "a", {"stop_words": ["a"]}),
    ("stop_words", ["a", "."], {"stop_words": ["a", "."]}),
    ("exclude_input_in_output", True, {}),
    ("exclude_input_in_output", False, REFUSED),
    ("end_id", 2, REFUSED),
    ("pad_id", 2, REFUSED),
    ("top_k", 0, {}),
    ("top_k", 1, {"top_k": 1}),
    ("runtime_top_k", 1, REFUSED),
    ("top_p", 0.5, {"top_p": 0.5}),
    ("top_p", 1.0, {}),
    ("top_p", 0.0, REFUSED),
    ("runtime_top_p", 0.5, REFUSED),
    ("temperature", 0.7, {"temperature": 0.7}),
    ("length_penalty", 1.0, {}),
    ("length_penalty", 2.0, REFUSED),
    ("len_penalty", 2.0, REFUSED),
    ("repetition_penalty", 1.3, {"repetition_penalty": 1.3}),
    ("min_length", 1, REFUSED),
    ("min_tokens", 3, {"min_tokens": 3}),
    ("presence_penalty", 0.0, {}),
    ("presence_penalty", 0.5, REFUSED),
    ("frequency_penalty", 0.0, {}),
    ("frequency_penalty", 0.5, REFUSED),
    ("random_seed", 7, REFUSED),
    ("seed", 7, {"seed": 7}),
    ("return_log_probs", False, {}),
    ("return_log_probs", True, REFUSED),
    ("return_context_logits", False, {}),
    ("return_context_logits", True, REFUSED),
    ("return_generation_logits", True, REFUSED),
    ("return_perf_metrics", True, REFUSED),
    ("return_num_input_tokens", True, REFUSED),
    ("return_num_output_tokens", True, REFUSED),
    ("num_return_sequences", 1, {}),
    ("num_return_sequences", 2, REFUSED),
    ("beam_width", 1, {}),
    ("beam_width", 2, REFUSED),
    ("beam_search_diversity_rate", 0.5, REFUSED),
    ("early_stopping", 1, REFUSED),
    ("no_repeat_ngram_size", 2, REFUSED),
    ("stream", False, {}),
    ("streaming", False, REFUSED),
    ("prompt_embedding_table", [[0.5]], REFUSED),
    ("prompt_vocab_size", 1, REFUSED),
    ("prompt_table_extra_ids", [1], REFUSED),
    ("embedding_bias_words", ["a"], REFUSED),
    ("embedding_bias_weights", [0.5], REFUSED),
    ("num_draft_tokens", 3, REFUSED),
    ("use_draft_logits", True, REFUSED),
    ("lora_task_id", 1, REFUSED),
    ("lora_weights", [[0.5]], REFUSED),
    ("lora_config", [[1]], REFUSED),
    ("guided_decoding_guide_type", "json", REFUSED),
    ("guided_decoding_guide", "{}", REFUSED),
    ("retention_token_range_starts", [0], REFUSED),
    ("retention_token_range_ends", [1], REFUSED),
    ("retention_token_range_priorities", [1], REFUSED),
    ("retention_token_range_durations_ms", [1], REFUSED),
    ("retention_decode_priority", 1, REFUSED),
    ("retention_decode_duration_ms", 1, REFUSED),
]

# Inputs of Triton's vLLM backend, fields of vLLM's SamplingParams and of its /generate.
VLLM = [
    ("image", "a", REFUSED),
    ("sampling_parameters", '{"temperature": 0.5}', REFUSED),
    ("return_finish_reason", True, REFUSED),
    ("return_cumulative_logprob", True, REFUSED),
    ("return_logprobs", True, REFUSED),
    ("prompt", "Who naps?", REFUSED),
    ("n", 1, {}),
    ("n", 2, REFUSED),
    ("best_of", 2, REFUSED),
    ("use_beam_search", False, {}),
    ("use_beam_search", True, REFUSED),
    ("top_k", -1, {}),
    ("min_p", 0.0, {}),
    ("min_p", 0.1, REFUSED),
    ("stop", ".", REFUSED),
    ("stop", ["."], REFUSED),
    ("stop_token_ids", [2], REFUSED),
    ("ignore_eos", False, {}),
    ("ignore_eos", True, REFUSED),
    ("logprobs", 1, REFUSED),
    ("prompt_logprobs", 1, REFUSED),
    ("flat_logprobs", True, REFUSED),
    ("detokenize", False, REFUSED),
    ("skip_special_tokens", True, {}),
    ("skip_special_tokens", False, REFUSED),
    ("spaces_between_special_tokens", False, REFUSED),
    ("include_stop_str_in_output", True, REFUSED),
    ("truncate_prompt_tokens", 5, REFUSED),
    ("allowed_token_ids", [2], REFUSED),
    ("structured_outputs", {"regex": "a"}, REFUSED),
    ("guided_json", "{}", REFUSED),
    ("bad_words", ["cat"], REFUSED),
    ("extra_args", {"a": 1}, REFUSED),
    ("thinking_token_budget", 1, REFUSED),
]

# Parameters of OpenAI's completions and chat completions.
OPENAI = [
    ("model", "refrag", REFUSED),
    ("messages", [{"role": "user", "content": "Who naps?"}], REFUSED),
    ("max_completion_tokens", 5, REFUSED),
    ("max_output_tokens", 5, REFUSED),
    ("suffix", "a", REFUSED),
    ("echo", False, {}),
    ("echo", True, REFUSED),
    ("logit_bias", {"2": -100}, REFUSED),
    ("logprobs", True, REFUSED),
    ("top_logprobs", 2, REFUSED),
    ("stream_options", {"include_usage": True}, REFUSED),
    ("response_format", {"type": "json_object"}, REFUSED),
    ("tools", [], REFUSED),
    ("tool_choice", "auto", REFUSED),
    ("parallel_tool_calls", True, REFUSED),
    ("functions", [], REFUSED),
    ("function_call", "auto", REFUSED),
    ("user", "me", REFUSED),
    ("service_tier", "auto", REFUSED),
    ("store", True, REFUSED),
    ("metadata", {"a": "b"}, REFUSED),
    ("modalities", ["text"], REFUSED),
    ("prediction", {"type": "content"}, REFUSED),
    ("reasoning_effort", "low", REFUSED),
    ("verbosity", "low", REFUSED),
    ("web_search_options", {}, REFUSED),
    ("prompt_cache_key", "a", REFUSED),
    ("safety_identifier", "a", REFUSED),
]

# Further spellings, near one of ours.
MISSPELT = [(name, 5, REFUSED) for name in ("max_token", "max_new_tokens", "maxTokens", "max-tokens", "MAX_TOKENS")]

TABLE = [*TENSORRT_LLM, *VLLM, *OPENAI, *MISSPELT]
NUMBERS = {"max_tokens": "INT64", "top_k": "INT64", "min_tokens": "INT64", "seed": "UINT64"}


def case_id(value):
    return json.dumps(value) if not isinstance(value, str) else value or "empty"


def ask_over_http(server, option, value):
    body = {"text_input": QUESTION, "passages": PASSAGES, **DRAWN, "stream": False, option: value}
    with post(server, "generate", body) as response:
        return json.load(response)["text_output"]


def as_tensor(name, value):
    values = value if isinstance(value, list) else [value]
    if not values or isinstance(values[0], (str, dict)):
        return as_bytes(*(json.dumps(each) if isinstance(each, dict) else each for each in values))
    if isinstance(value, bool):
        return np.array(values), "BOOL"
    datatype = "FP32" if np.array(values).dtype.kind == "f" else NUMBERS.get(name, "INT32")
    return np.array(values, {"FP32": "f4", "INT32": "i4", "INT64": "i8", "UINT64": "u8"}[datatype]), datatype


def grpc_inputs(option, value):
    drawn = {name: as_tensor(name, each) for name, each in {"stream": False, **DRAWN}.items()}
    asked = {"text_input": as_bytes(QUESTION), "passages": as_bytes(*PASSAGES), **drawn}
    return {**asked, option: as_tensor(option, value)}


def ask_over_grpc(server, option, value):
    [result] = raw_request(server, grpc_inputs(option, value))
    if isinstance(result, str):
        raise error_from_message(result)
    return result.as_numpy("text_output")[0].decode()


def answer_meant(client, means):
    options = {"question": QUESTION, "passages": PASSAGES, **DRAWN, **means}
    return client.generate(options.pop("question"), options.pop("passages"), **options).text


@pytest.mark.parametrize(("option", "value", "means"), TABLE, ids=case_id)
def test_over_http_an_option_is_served_as_it_is_meant_or_refused_by_name(server, client, option, value, means):
    if means is not REFUSED:
        assert ask_over_http(server, option, value) == answer_meant(client, means)
        return
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask_over_http(server, option, value)
    assert caught.value.code == 400
    assert option in json.loads(caught.value.read())["error"]


@pytest.mark.parametrize(("option", "value", "means"), TABLE, ids=case_id)
def test_over_grpc_an_option_is_served_as_it_is_meant_or_refused_by_name(server, client, option, value, means):
    # What is served without being an input is a parameter over HTTP, and a tensor that Triton refuses here.
    if means is not REFUSED and option in ENSEMBLE_INPUTS:
        assert ask_over_grpc(server, option, value) == answer_meant(client, means)
        return
    with pytest.raises(InvalidRequest, match=option):
        ask_over_grpc(server, option, value)


@pytest.mark.parametrize(
    ("body", "advice"),
    [
        ({"max_new_tokens": 5}, "max_new_tokens is no input; is max_tokens meant? (the inputs are text_input, pass"),
        ({"random_seed": 5}, "random_seed is no input; is seed meant?"),
        ({"stop": "."}, "stop is no input; is stop_words meant?"),
        (
            {"max_token": 5, "strem": True},
            "max_token is no input; is max_tokens meant?; strem is no input; is stream meant?",
        ),
        ({"beam_width": 4}, "beam_width is 4, which is not to be had here; leave it out, or send 1"),
        ({"lora_task_id": 4}, "lora_task_id is no input; leave it out"),
        ({"max_tokens": 3_000_000_000}, "max_tokens 3000000000 more"),
        ({"max_tokens": 2**32 + 3}, "max_tokens 4294967299 more"),
        ({"deadline_ms": -(2**40)}, f"deadline_ms is {-(2**40)}"),
    ],
)
def test_a_refusal_over_http_says_what_was_sent_and_what_to_send(server, body, advice):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, "generate", {"text_input": QUESTION, "stream": False, **body})
    error = error_from_message(json.loads(caught.value.read())["error"])
    assert isinstance(error, InvalidRequest)
    assert advice in str(error)


def test_numbers_beyond_32_bits_that_fit_are_served(server, client):
    wide = {"top_k": 2**33, "deadline_ms": 2**40, "priority": -(2**40)}
    body = {"text_input": QUESTION, "passages": PASSAGES, **DRAWN, "stream": False, **wide}
    with post(server, "generate", body) as response:
        assert json.load(response)["text_output"] == answer_meant(client, {})


def test_tritons_own_parameters_pass_over_http(server):
    own = {"id": "dialect-1", "timeout": 5_000_000, "sequence_id": 4, "sequence_start": True, "sequence_end": True}
    body = {"text_input": QUESTION, "max_tokens": 2, "stream": False, **own, "triton_enable_empty_final_response": True}
    with post(server, "generate", body) as response:
        assert json.load(response)["num_output_tokens"] > 0


def test_tritons_own_parameters_pass_over_grpc(server):
    own = {"sequence_id": 5, "sequence_start": True, "sequence_end": True, "timeout": 5_000_000}
    results = raw_request(
        server, grpc_inputs("max_tokens", 2), **own, request_id="own", enable_empty_final_response=True
    )
    assert not any(isinstance(result, str) for result in results)


@pytest.mark.parametrize("name", ["max_new_tokens", "max_tokens"])
def test_over_grpc_a_parameter_in_place_of_a_tensor_is_refused_by_name(server, name):
    [message] = raw_request(server, grpc_inputs("seed", 4), parameters={name: 5})
    error = error_from_message(message)
    assert isinstance(error, InvalidRequest) and str(error).startswith(name)


@pytest.mark.parametrize(
    ("model", "endpoint", "body", "advice"),
    [
        ("decoder", "generate_stream", {"id": "x", "stopp": True}, "stopp is no input; is stop meant?"),
        ("chunk_store", "generate", {"operation": "verify", "tiers": "disk"}, "tiers is no input; is tier meant?"),
    ],
)
def test_models_that_are_called_directly_refuse_what_they_do_not_know(server, model, endpoint, body, advice):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, endpoint, body, model=model)
    assert advice in caught.value.read().decode()
