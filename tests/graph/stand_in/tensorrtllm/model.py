"""A stand-in for NVIDIA's backend `tensorrtllm`, over our own engine: the same tensors in, the same tensors out.

It takes nothing and sends nothing that the real one would not: no text, no finish reason, no deadline, no priority; one
sequence to a request; cancellation by `stop` and the request's id; and no word of why an answer has ended.
"""

import json
import threading
import uuid
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from refrag.decoders.base import DecoderRequest, MixedPrompt
from refrag.decoders.torch_engine import TorchDecoder, TorchSettings
from refrag.request import SamplingParams

NUMPY_TYPES = {"TYPE_INT32": np.int32, "TYPE_UINT64": np.uint64, "TYPE_FP32": np.float32, "TYPE_BOOL": np.bool_}
TABLE_TYPES = {"TYPE_FP32": torch.float32, "TYPE_FP16": torch.float16, "TYPE_BF16": torch.bfloat16}
# What the real backend cannot start without.
NEEDED = (
    "gpt_model_path",
    "gpt_model_type",
    "tokenizer_dir",
    "guided_decoding_backend",
    "xgrammar_tokenizer_info_path",
)


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in self.config["parameters"].items()}
        if missing := [name for name in NEEDED if name not in parameters]:
            raise ValueError(f"Cannot find parameter with name: {missing[0]}")
        self.excludes_input = parameters["exclude_input_in_output"] == "true"
        self.reuses_blocks = parameters["enable_kv_cache_reuse"] == "true"
        engine = Path(parameters["gpt_model_path"])
        settings = TorchSettings(kv_cache_mib=256, max_active=16, num_threads=2)
        self.decoder = TorchDecoder(engine / "checkpoint", settings, lambda stats: None)
        self.running, self.changing = {}, threading.Lock()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.accept(request, sender)
            except Exception as error:
                response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def accept(self, request, sender):
        inputs = self.read(request)
        if inputs.get("stop", False):
            self.cancel(request.request_id())
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        for name in ("input_ids", "runtime_top_k", "request_output_len"):
            assert name in inputs, f"{name} is not present in the request"
        sequence = Sequence(self, request.request_id(), sender, inputs)
        with self.changing:
            self.running[request.request_id()] = sequence
        self.decoder.submit(sequence.request, sequence)

    def cancel(self, request_id):
        if not request_id:
            raise ValueError("Trying to stop a request but request ID is not provided")
        with self.changing:
            sequence = self.running.get(request_id)
        if sequence is not None:
            self.decoder.stop(sequence.request.request_id)

    def read(self, request):
        """Return the inputs without their batch, which must be one; each must be declared with type and shape."""
        declared = {each["name"]: each for each in self.config["input"]}
        inputs = {}
        for tensor in request.inputs():
            name, config = tensor.name(), declared[tensor.name()]
            array = read_table(tensor, config) if name == "prompt_embedding_table" else tensor.as_numpy()
            if name != "prompt_embedding_table":
                assert array.dtype == NUMPY_TYPES[config["data_type"]], f"{name} is {array.dtype}"
            assert array.shape[0] == 1, f"{name} has shape {array.shape}, a batch of one is needed"
            is_scalar = "reshape" in config
            assert array.ndim == (1 if is_scalar else 1 + len(config["dims"])), f"{name} has shape {array.shape}"
            inputs[name] = array[0].item() if is_scalar else array[0]
        return inputs

    def finalize(self):
        self.decoder.close()


def read_table(tensor, config):
    table = torch.utils.dlpack.from_dlpack(tensor.to_dlpack())
    assert table.dtype == TABLE_TYPES[config["data_type"]], f"prompt_embedding_table is {table.dtype}"
    return table.clone()


class Sequence:
    """A request in the engine, and the sink of its tokens."""

    def __init__(self, model, name, sender, inputs):
        self.model, self.name, self.sender = model, name, sender
        ids, table = inputs["input_ids"], inputs.get("prompt_embedding_table", torch.zeros(0, 0))
        vocab_size = model.decoder.limits.vocab_size
        assert inputs["input_lengths"] == len(ids)
        if model.reuses_blocks:
            extra_ids = inputs["prompt_table_extra_ids"]
            assert len(extra_ids) == len(ids)
            assert np.array_equal(extra_ids > 0, ids >= vocab_size), "a row without an extra id, or a token with one"
        assert inputs["prompt_vocab_size"] == len(table)
        assert model.excludes_input and inputs["exclude_input_in_output"] and inputs["streaming"]
        assert inputs["end_id"] in model.decoder.worker.engine.runner.decoder.eos_ids
        self.stop_words = read_words(inputs["stop_words_list"].reshape(-1).tolist())
        self.token_ids, self.log_probs = [], []
        self.request = DecoderRequest(
            MixedPrompt(torch.from_numpy(ids.astype(np.int64)), table.float()), read_sampling(inputs), str(uuid.uuid4())
        )

    def send(self, delta):
        self.token_ids += delta.token_ids
        self.log_probs += delta.log_probabilities
        if delta.finish_reason is None and any(self.ends_with(word) for word in self.stop_words):
            self.respond(delta.token_ids, is_final=True)
            self.model.decoder.stop(self.request.request_id)
        elif not self.is_over:
            self.respond(delta.token_ids, delta.finish_reason is not None)

    is_over = False

    def fail(self, error):
        # An executor that cancels sends what it has, without an error.
        if not self.is_over:
            self.respond([], is_final=True)

    def is_abandoned(self):
        return False

    def ends_with(self, word):
        return word and self.token_ids[-len(word) :] == word

    def respond(self, token_ids, is_final):
        tensors = {
            "output_ids": np.array(token_ids, np.int32).reshape(1, 1, -1),
            "sequence_length": np.array([[len(token_ids)]], np.int32),
            # All so far, not only the new ones.
            "output_log_probs": np.array(self.log_probs, np.float32).reshape(1, 1, -1),
        }
        response = pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])
        if not is_final:
            self.sender.send(response)
            return
        self.is_over = True
        with self.model.changing:
            if self.model.running.get(self.name) is self:
                del self.model.running[self.name]
        self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def read_words(layout):
    """Return the words of a list that holds ids, and then the ends of the words."""
    assert len(layout) % 2 == 0, "Sparse list must not have odd length"
    ids, ends = layout[: len(layout) // 2], layout[len(layout) // 2 :]
    ends = ends[: ends.index(-1)] if -1 in ends else ends
    assert all(first < second for first, second in pairwise(ends)), "non-increasing offsets"
    assert not ends or ends[-1] <= len(ids), "out-of-bound offsets"
    return [ids[start:end] for start, end in pairwise([0, *ends])]


def read_sampling(inputs):
    """Return the sampling; one likeliest token is the greedy choice, and 0 or 1 no limit of the others."""
    top_k, top_p = inputs["runtime_top_k"], inputs["runtime_top_p"]
    is_greedy = top_k == 1
    return SamplingParams(
        max_tokens=inputs["request_output_len"],
        temperature=0.0 if is_greedy else inputs["temperature"],
        top_k=None if top_k <= 1 else top_k,
        # The shortest number that the FP32 stands for.
        top_p=None if is_greedy or top_p == 1 else float(str(np.float32(top_p))),
        seed=inputs["seed"],
        repetition_penalty=float(str(np.float32(inputs["repetition_penalty"]))),
        min_tokens=inputs["min_tokens"],
        log_probabilities=inputs["return_log_probs"],
    )
