"""Reads a request to the model `decoder`: its tensors → prompt, sampling parameters and deadline."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from refrag.decoders.base import ChunksToSense, DecoderRequest, MixedPrompt
from refrag.errors import InvalidRequest
from refrag.policies import POLICIES
from refrag.request import MAX_SENSE_TOKENS, SamplingParams
from refrag.serving.evidence import check_passages
from refrag.serving.fallback import read_fallback
from refrag.serving.parameters import check_least
from refrag.serving.tensors import Tensors, flag, integer, scalar, text, texts

OF_CHUNKS = ("sense_chunk_ids", "sense_passages", "sense_similarities")
# What other servers take for "no limit", beside leaving top_k out: Hugging Face and TensorRT-LLM 0, vLLM -1 too.
NO_TOP_K = (0, -1)


@dataclass(frozen=True)
class RequestDefaults:
    """Defaults and limits of requests. Raises SetupError for a number below 1.

    default_max_tokens, default_deadline_ms: used where a request does not say.
    max_deadline_ms: longer deadlines are cut to this, so that no request whose caller is gone holds its place for long.
    """

    default_max_tokens: int = 64
    default_deadline_ms: int = 60_000
    max_deadline_ms: int = 600_000

    def __post_init__(self) -> None:
        check_least(self, 1, "default_max_tokens", "default_deadline_ms", "max_deadline_ms")


def read_request(request_id: str, inputs: Tensors, defaults: RequestDefaults) -> DecoderRequest:
    """Return the request, or raise InvalidRequest naming the tensor at fault."""
    arrival, prompt = _read_arrival(inputs), read_prompt(inputs)
    return DecoderRequest(
        prompt=prompt,
        to_sense=_read_chunks_to_sense(inputs, len(prompt.chunk_embeddings)),
        sampling=_read_sampling(inputs, defaults),
        request_id=request_id,
        deadline=arrival + _read_timeout(inputs, defaults),
        priority=integer(inputs, "priority") or 0,
        arrival=arrival,
    )


def read_prompt(inputs: Tensors) -> MixedPrompt:
    """Return ids with placeholders, and the table they point into; raise InvalidRequest if input_ids does not fit."""
    if "input_ids" not in inputs:
        raise InvalidRequest("input_ids is missing; send a prompt, or stop=true with the id of the request to stop")
    input_ids = torch.from_numpy(inputs["input_ids"].reshape(-1).astype(np.int64))
    if "prompt_table_extra_ids" in inputs and inputs["prompt_table_extra_ids"].size != len(input_ids):
        raise InvalidRequest(
            f"prompt_table_extra_ids has {inputs['prompt_table_extra_ids'].size} ids for the {len(input_ids)} slots of "
            "input_ids; send one for each slot, 0 for a token, or leave it out"
        )
    if "prompt_embedding_table" not in inputs:
        return MixedPrompt(input_ids, torch.zeros(0, 0))
    return MixedPrompt(input_ids, torch.tensor(inputs["prompt_embedding_table"]))


def _read_chunks_to_sense(inputs: Tensors, num_rows: int) -> ChunksToSense | None:
    """Return the chunks that the decoder chooses from, or None if they were chosen already.

    num_rows: of prompt_embedding_table, one for each chunk.
    """
    num_tokens, budget = integer(inputs, "sense_tokens") or 0, integer(inputs, "sense_budget") or 0
    if not 0 <= num_tokens <= MAX_SENSE_TOKENS:
        raise InvalidRequest(f"sense_tokens is {num_tokens}; allowed is 0 to {MAX_SENSE_TOKENS}")
    raised = integer(inputs, "sense_raised_budget") or 0
    if budget == raised == 0:
        return None
    policy = text(inputs, "sense_policy") or ""
    if POLICIES.find(policy).needs != "attention":
        raise InvalidRequest(f"policy {policy!r} does not choose by attention; name one that does")
    fewest = 0 if raised else 1
    if not fewest <= budget < num_rows:
        raise InvalidRequest(
            f"sense_budget is {budget}; allowed is {fewest} to {num_rows - 1}, one less than the chunks"
        )
    fallback = read_fallback(inputs, "sense_raised_budget", raised, budget, num_rows)
    of_chunks = {name: inputs.get(name, np.zeros(0)) for name in OF_CHUNKS}
    if wrong := [f"{name} has {len(of_chunk)}" for name, of_chunk in of_chunks.items() if len(of_chunk) != num_rows]:
        raise InvalidRequest(
            f"{', '.join(wrong)} for the {num_rows} rows of prompt_embedding_table; send one for each row"
        )
    # Copied: a tensor's memory belongs to its request, which is gone while the decoder still reads them.
    token_ids, passages, similarities = (np.array(of_chunk) for of_chunk in of_chunks.values())
    if not token_ids.size:
        raise InvalidRequest(f"sense_chunk_ids has shape {list(token_ids.shape)}; every chunk must have a token")
    check_passages("sense_passages", passages)
    if not np.isfinite(similarities).all():
        raise InvalidRequest("sense_similarities holds NaN or infinity; every value must be finite")
    return ChunksToSense(policy, budget, token_ids, passages, similarities, num_tokens, fallback)


def _read_sampling(inputs: Tensors, defaults: RequestDefaults) -> SamplingParams:
    max_tokens, repetition_penalty = integer(inputs, "request_output_len"), scalar(inputs, "repetition_penalty")
    top_k = integer(inputs, "runtime_top_k")
    return SamplingParams(
        max_tokens=defaults.default_max_tokens if max_tokens is None else max_tokens,
        temperature=scalar(inputs, "temperature") or 0.0,
        top_k=None if top_k in NO_TOP_K else top_k,
        top_p=scalar(inputs, "runtime_top_p"),
        seed=integer(inputs, "random_seed"),
        repetition_penalty=1.0 if repetition_penalty is None else repetition_penalty,
        min_tokens=integer(inputs, "min_tokens") or 0,
        stop_words=_read_stop_words(inputs),
        log_probabilities=flag(inputs, "return_log_probs", default=False),
    )


def _read_stop_words(inputs: Tensors) -> tuple[str, ...]:
    """Return the stop words; a single empty one, with which other servers' clients say that there are none, is none."""
    words = tuple(texts(inputs, "stop_words"))
    return () if words == ("",) else words


def _read_arrival(inputs: Tensors) -> float:
    """Return when the ensemble took the request, in seconds of the monotonic clock that all its processes share."""
    now = time.monotonic_ns()
    return min(now, integer(inputs, "arrival_time_ns") or now) / 1e9


def _read_timeout(inputs: Tensors, defaults: RequestDefaults) -> float:
    """Return the seconds that the request has from its arrival."""
    milliseconds = integer(inputs, "deadline_ms")
    if milliseconds is None:
        milliseconds = defaults.default_deadline_ms
    if milliseconds < 1:
        raise InvalidRequest(f"deadline_ms is {milliseconds}; it must be at least 1")
    return min(milliseconds, defaults.max_deadline_ms) / 1e3
