"""Turns mixed prompt and options into the tensors of TensorRT-LLM's Triton backend."""

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refrag.context.deployed import DeployedTokenizers
from refrag.context.tokenizer import TextTokenizer
from refrag.decoders.base import DecoderRequest, Limits, check_prompt
from refrag.decoders.tensorrt_llm import EngineFacts, lay_out_words
from refrag.errors import InvalidRequest
from refrag.request import SamplingParams
from refrag.serving.decoder_request import RequestDefaults, read_request
from refrag.serving.engine_answers import Announcement
from refrag.serving.evidence import INPUTS as EVIDENCE_INPUTS
from refrag.serving.responses import PASS_THROUGH
from refrag.serving.tensors import Tensors, flag, integer, strings, text
from refrag.serving.triton import Caller, tell

# S slots, R rows of chunk embeddings, D decoder width

# The policy that reads the decoder's own attention.
ATTENTION = "attention"
TABLE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# The engine's names for "all tokens"; both 0 would be greedy.
ALL_TOP_K, ALL_TOP_P = 0, 1.0


class EngineRequests:
    """The service behind the model `engine_request`, whose config.pbtxt lists the tensors.

    postprocessing: name of the model that is told of each answer.
    """

    def __init__(self, checkpoint: Path, defaults: RequestDefaults, postprocessing: str = "postprocessing") -> None:
        self.facts = EngineFacts.load(checkpoint)
        self.limits = Limits(self.facts.vocab_size, self.facts.width, self.facts.window)
        self.tokenizer = DeployedTokenizers.load(checkpoint).decoder
        self.defaults, self.postprocessing = defaults, postprocessing

    def run(self, request_id: str, caller: Caller, inputs: Tensors) -> dict[str, Any]:
        """Return the engine's tensors, once postprocessing knows of the answer; raise as the torch decoder does.

        caller: the request's correlation id.
        """
        request = read_request(request_id, inputs, self.defaults)
        self._check(request, inputs)
        tensors = self._lay_out(request, inputs)
        self._announce(request, caller, inputs)
        return {f"engine_{name}": value for name, value in tensors.items()}

    def _check(self, request: DecoderRequest, inputs: Tensors) -> None:
        check_prompt(request.prompt, request.sampling, self.limits, bool(integer(inputs, "num_chunks")))
        refuse_unavailable(request, text(inputs, "resolved_policy"), self.facts)
        num_slots, num_rows = len(request.prompt.input_ids), len(request.prompt.chunk_embeddings)
        if num_slots > self.facts.max_input_slots:
            raise InvalidRequest(
                f"the prompt needs {num_slots} slots, the engine was built for {self.facts.max_input_slots}; send "
                "fewer passages, lower expand_fraction, or build it with a larger --max_input_len"
            )
        if num_rows > self.facts.max_rows:
            raise InvalidRequest(
                f"the prompt has {num_rows} compressed chunks, the engine was built for {self.facts.max_rows}; send "
                "fewer passages, or build it with a larger --max_prompt_embedding_table_size"
            )

    def _lay_out(self, request: DecoderRequest, inputs: Tensors) -> dict[str, Any]:
        prompt, sampling = request.prompt, request.sampling
        table = prompt.chunk_embeddings.to(TABLE_DTYPES[self.facts.dtype])[None]  # (R, D) -> (1, R, D)
        if not bool(table.isfinite().all()):
            raise InvalidRequest(
                f"prompt_embedding_table holds values that {self.facts.dtype}, the engine's type, cannot; build the "
                "engine in bfloat16 or float32"
            )
        words = stop_words_as_ids(sampling.stop_words, self.tokenizer) + [[token] for token in self.facts.eos_ids[1:]]
        return {
            "input_ids": prompt.input_ids.numpy().astype(np.int32)[None],  # (1, S)
            "input_lengths": one(len(prompt.input_ids), np.int32),
            "request_output_len": one(sampling.max_tokens, np.int32),
            "end_id": one(self.facts.eos_ids[0], np.int32),
            "pad_id": one(self.facts.pad_id, np.int32),
            "stop_words_list": lay_out_words(words),
            **lay_out_sampling(sampling),
            # NumPy has no bfloat16.
            "prompt_embedding_table": table if table.dtype == torch.bfloat16 else table.numpy(),
            "prompt_table_extra_ids": np.array(inputs["prompt_table_extra_ids"])[None],  # (1, S)
            "prompt_vocab_size": one(table.shape[1], np.int32),
        }

    def _announce(self, request: DecoderRequest, caller: Caller, inputs: Tensors) -> None:
        announcement = Announcement.of(request, flag(inputs, "streaming", default=True))
        passed_through = {name: np.array(inputs.get(name, default)) for name, default in PASS_THROUGH.items()}
        evidence = {name: np.array(inputs[name]) for name in EVIDENCE_INPUTS if name in inputs}
        message = {"answer": strings(announcement.to_json()), **passed_through, **evidence}
        tell(self.postprocessing, request.request_id, caller, message)


def refuse_unavailable(request: DecoderRequest, policy: str | None, facts: EngineFacts) -> None:
    """Raise InvalidRequest for what the engine's Triton backend has no tensor for, or does otherwise."""
    sampling = request.sampling
    if not request.request_id:
        raise InvalidRequest(
            "the request has no id, by which an engine's tokens are told apart; send one, or ask refrag_watched"
        )
    if policy == ATTENTION:
        raise InvalidRequest(
            "policy is 'attention', which reads the decoder's attention; TensorRT-LLM does not show it; name another"
        )
    if request.priority:
        raise InvalidRequest(
            f"priority is {request.priority}; TensorRT-LLM's Triton backend knows none; leave it out, or send 0"
        )
    if sampling.min_tokens and len(facts.eos_ids) > 1:
        raise InvalidRequest(
            f"min_tokens is {sampling.min_tokens}; the engine holds back only one of this decoder's "
            f"{len(facts.eos_ids)} end tokens; leave it out"
        )
    if sampling.log_probabilities and (sampling.temperature or sampling.repetition_penalty != 1):
        raise InvalidRequest(
            "log_probs is true with temperature or repetition_penalty, after which TensorRT-LLM takes them; leave one "
            "of the two out"
        )


def lay_out_sampling(sampling: SamplingParams) -> dict[str, np.ndarray]:
    """Return the tensors of sampling. Greedy is the choice among one token, since the engine knows no temperature 0."""
    is_greedy = sampling.temperature == 0
    # Without a seed the engine takes the same one for every request.
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    return {
        "temperature": one(1.0 if is_greedy else sampling.temperature, np.float32),
        "runtime_top_k": one(1 if is_greedy else sampling.top_k or ALL_TOP_K, np.int32),
        "runtime_top_p": one(ALL_TOP_P if is_greedy else sampling.top_p or ALL_TOP_P, np.float32),
        "repetition_penalty": one(sampling.repetition_penalty, np.float32),
        "min_tokens": one(sampling.min_tokens, np.int32),
        "seed": one(seed, np.uint64),
        # An ensemble's step waits for all of its inputs, so they are always asked for.
        "return_log_probs": one(True, np.bool_),
        "exclude_input_in_output": one(True, np.bool_),
        # A stop word that only the text shows can end an answer early in no other way.
        "streaming": one(True, np.bool_),
    }


def stop_words_as_ids(words: tuple[str, ...], tokenizer: TextTokenizer) -> list[list[int]]:
    """Return the ids of those words that ids can spell alone, so that the engine ends by itself where they come so.

    Postprocessing finds every stop word in the text, however its characters are cut into tokens.
    """
    rows = [row for row in tokenizer.encode(words) if row]
    spelled = tokenizer.decode(rows) if rows else []
    return [row for row, written in zip(rows, spelled, strict=True) if any(word in written for word in words)]


def one(value: float, dtype: Any) -> np.ndarray:
    return np.array([[value]], dtype)
