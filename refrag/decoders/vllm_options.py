"""Translates for vLLM: arguments of its engine, variables of its processes, sampling parameters of each request."""

import os
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refrag.context.deployed import DECODER
from refrag.errors import InvalidRequest, SetupError
from refrag.request import SamplingParams
from refrag.spelling import suggestion

# By the engine argument: the parameter of the model that sets it, or why it is fixed.
SET_ELSEWHERE = {
    "model": "the exported checkpoint",
    "tokenizer": "the exported checkpoint",
    "skip_tokenizer_init": "text is made by the server",
    "enable_prompt_embeds": "prompts are embeddings",
    "scheduling_policy": "requests have priorities",
    "prefix_caching_hash_algo": "only a cryptographic hash keeps callers apart",
    "logprobs_mode": "log-probabilities are those before temperature and limits",
    "generation_config": "requests say how tokens are chosen",
    "dtype": "dtype",
    "max_model_len": "max_prompt_slots in refrag.json",
    "max_num_seqs": "max_active",
    "max_num_batched_tokens": "max_step_slots",
    "kv_cache_memory_bytes": "kv_cache_mib",
    "disable_log_stats": "the metrics tell",
}
# vLLM's own limit.
MAX_TEMPERATURE = 2.0
_MIB = 2**20


@dataclass(frozen=True)
class EngineOptions:
    """Options of one engine. further: arguments that are passed on as they are."""

    checkpoint: Path
    window: int
    dtype: str
    num_threads: int
    kv_cache_mib: int
    max_active: int
    max_waiting: int
    max_step_slots: int
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.checkpoint / DECODER

    def engine_arguments(self) -> dict[str, Any]:
        """Return the arguments of vLLM's engine, by name."""
        return {
            "model": str(self.folder),
            "skip_tokenizer_init": True,
            "enable_prompt_embeds": True,
            "scheduling_policy": "priority",
            "enable_prefix_caching": True,
            "prefix_caching_hash_algo": "sha256",
            "logprobs_mode": "raw_logprobs",
            "generation_config": "vllm",
            "dtype": self.dtype,
            "max_model_len": self.window,
            "max_num_seqs": self.max_active,
            # A step must hold every running answer's next token.
            "max_num_batched_tokens": max(self.max_step_slots, self.max_active),
            "kv_cache_memory_bytes": self.kv_cache_mib * _MIB,
            # The metrics tell.
            "disable_log_stats": True,
            **self.further,
        }

    def variables(self) -> dict[str, str]:
        """Return the environment variables that vLLM and its processes need; those that are set already stay."""
        return {
            # Its own default binds threads to cores that other models of the server use too.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(self.num_threads or len(os.sched_getaffinity(0))),
            # Spinning threads hold the cores that the server's other processes need.
            "OMP_WAIT_POLICY": "PASSIVE",
            # A RoPE reaches beyond the length it was trained on, as in the other decoders.
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
            # Its processes have nothing to save, and a server that stops does not wait for them for long.
            "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }


def refuse_set_elsewhere(names: Iterable[str]) -> None:
    """Raise SetupError for an engine argument that the model's own parameters or the contract decide."""
    if taken := sorted(SET_ELSEWHERE.keys() & set(names)):
        told = "; ".join(f"{name} ({SET_ELSEWHERE[name]})" for name in taken)
        raise SetupError(f"engine_arguments holds arguments that are set elsewhere: {told}; leave them out")


def refuse_unknown(names: Iterable[str], known: Collection[str]) -> None:
    """Raise SetupError for an engine argument that this release of vLLM does not have."""
    if unknown := sorted(set(names) - set(known)):
        raise SetupError(
            f"engine_arguments holds {unknown}, which this release of vLLM does not have{suggestion(unknown, known)}"
        )


def check_sampling(sampling: SamplingParams) -> None:
    """Raise InvalidRequest for what other decoders take and vLLM does not."""
    if sampling.temperature > MAX_TEMPERATURE:
        raise InvalidRequest(
            f"temperature is {sampling.temperature:g}; the decoder vllm takes up to {MAX_TEMPERATURE:g}: lower it"
        )


def sampling_arguments(sampling: SamplingParams, eos_ids: Collection[int]) -> dict[str, Any]:
    """Return the arguments of vLLM's SamplingParams.

    Stop words and text are left to `Answer`: they are then those of every decoder.
    """
    is_greedy = sampling.temperature == 0
    return {
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "temperature": sampling.temperature,
        "top_k": 0 if is_greedy or sampling.top_k is None else sampling.top_k,
        "top_p": 1.0 if is_greedy or sampling.top_p is None else sampling.top_p,
        # Without one of its own, a request would draw from a generator that others move on.
        "seed": None if is_greedy else _seed(sampling.seed),
        "repetition_penalty": sampling.repetition_penalty,
        # The chosen token's own.
        "logprobs": 0 if sampling.log_probabilities else None,
        # Only these end an answer, whatever the decoder's folder says besides.
        "stop_token_ids": sorted(eos_ids),
        "ignore_eos": True,
        "detokenize": False,
    }


def _seed(seed: int | None) -> int:
    return secrets.randbits(63) if seed is None else seed
