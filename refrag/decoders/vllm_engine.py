"""vLLM's AsyncLLM as a `StreamingEngine`: the one module that imports vllm, and only when an engine is opened."""

import locale
import os
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from refrag.decoders.async_worker import Tokens
from refrag.decoders.base import DecoderRequest, DecoderStats, Observe
from refrag.decoders.vllm_options import EngineOptions, refuse_unknown, sampling_arguments
from refrag.decoders.vllm_stats import EngineStats
from refrag.engine.answer import Pick
from refrag.errors import CheckpointError, InvalidRequest, ServerUnavailable, SetupError
from refrag.model.embeddings import TokenEmbeddings, load_token_embeddings
from refrag.model.positions import short_table_fault
from refrag.model.tokenizers import load_decoder_tokenizer

# S slots, D decoder width

NUM_TRIED_SLOTS, NUM_TRIED_TOKENS = 8, 9
# By which two log-probabilities of the likeliest token may differ.
TOLERANCES = {torch.float32: 0.01}
DEFAULT_TOLERANCE = 0.3
# vLLM's processes that have not ended by then are killed.
END_SECONDS = 3.0
INSTALL = "make its environment with `refrag decoders install vllm`, and name it with `refrag decoders use vllm`"


class VllmEngine:
    """vLLM's engine in its own processes. Make it with `open`, in the thread of a running event loop."""

    def __init__(
        self,
        engine: Any,
        options: EngineOptions,
        embeddings: TokenEmbeddings,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Collection[int],
        engine_stats: EngineStats,
    ) -> None:
        self.engine, self.embeddings, self.tokenizer, self.eos_ids = engine, embeddings, tokenizer, eos_ids
        self.max_in_flight = options.max_active + options.max_waiting
        self.engine_stats = engine_stats

    @classmethod
    def open(cls, options: EngineOptions, observe: Observe) -> "VllmEngine":
        """Start the engine; raise SetupError or CheckpointError that says why it cannot start here."""
        _prepare_process(options)
        arguments = _engine_arguments(options)
        _check_positions(options)
        embeddings = load_token_embeddings(options.folder, getattr(torch, options.dtype))
        tokenizer = load_decoder_tokenizer(options.checkpoint)
        engine_stats = EngineStats(observe)
        engine = _start(arguments, engine_stats)
        engine_stats.num_blocks = engine.vllm_config.cache_config.num_gpu_blocks or 0
        return cls(engine, options, embeddings, tokenizer, read_eos_ids(options), engine_stats)

    async def try_out(self) -> None:
        """Answer a prompt of ids, the same as rows, and parts of the answer again; raise SetupError or CheckpointError
        unless all go alike.

        Some of vLLM's kernels take one type of numbers only, and end its engine at the first prompt, not at the start.
        Others compute something else token by token than for a whole prompt.
        """
        ids = torch.linspace(0, self.embeddings.vocab_size - 1, NUM_TRIED_SLOTS).long()
        try:
            [by_ids] = await self._greedy({"prompt_token_ids": ids.tolist()}, 1, "tried-ids")
            by_steps = await self._greedy(self._prompt(self.embeddings.weight[ids]), NUM_TRIED_TOKENS, "tried-rows")
            read = torch.cat([ids, torch.tensor([pick.token_id for pick in by_steps])])
            at_once = [
                await self._greedy(self._prompt(self.embeddings.weight[read[:length]]), 1, f"tried-{length}")
                for length in range(NUM_TRIED_SLOTS + 1, len(read))
            ]
        except Exception as error:
            raise SetupError(
                f"vLLM has started with this decoder but cannot answer: {type(error).__name__}: {error}; the server's "
                "log has what its processes said, often that another dtype is needed, or that vLLM has no kernel for a "
                "layer on this device: docs/decoders.md says which hybrid decoders run on a CPU"
            ) from error
        allowed = TOLERANCES.get(self.embeddings.weight.dtype, DEFAULT_TOLERANCE)
        refuse_other_rows(by_ids, by_steps[0], allowed)
        refuse_other_steps(by_steps[1:], [pick for [pick] in at_once], allowed)

    async def _greedy(self, prompt: dict[str, Any], num_tokens: int, name: str) -> list[Pick]:
        """Return the likeliest tokens after the prompt, with their log-probabilities."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True, temperature=0, logprobs=0, detokenize=False
        )
        outputs = [output async for output in self.engine.generate(prompt, sampling, name)]
        return _tokens_of(outputs[-1]).picks

    async def stream(self, request: DecoderRequest, name: str) -> AsyncGenerator[Tokens, None]:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = self._prompt(embed(request, self.embeddings))
        arguments = sampling_arguments(request.sampling, self.eos_ids)
        try:
            sampling = SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)
            # vLLM counts its priorities in the same direction as we do.
            async with aclosing(self.engine.generate(prompt, sampling, name, priority=request.priority)) as outputs:
                async for output in outputs:
                    yield _tokens_of(output)
        except EngineDeadError as error:
            raise _dead(error) from error
        except VLLMClientError as error:
            raise InvalidRequest(f"vLLM refuses the request: {error}") from error

    def failure(self) -> ServerUnavailable | None:
        return _dead() if self.engine.errored else None

    def stats(self) -> DecoderStats:
        return self.engine_stats.state

    def close(self) -> None:
        self.engine.shutdown(timeout=END_SECONDS)

    def _prompt(self, rows: Tensor) -> dict[str, Any]:
        """Return a prompt whose every slot is an embedding, so that blocks of the KV cache are found by their content.

        The ids beside the rows are of no token, so that a penalty counts the answer's tokens alone, as in every
        decoder. Without any, vLLM would count what an earlier request left in their place. The mask is the same in all
        prompts, since vLLM's prefix cache does not look at it.
        """
        return {
            "prompt_embeds": rows,
            "prompt_token_ids": [self.embeddings.vocab_size] * len(rows),
            "prompt_is_token_ids": [False] * len(rows),
        }


def refuse_other_rows(by_ids: Pick, by_rows: Pick, allowed: float) -> None:
    """Raise CheckpointError if the log-probability of the likeliest token is another one after ids than after rows."""
    told, got = by_ids.log_probability or 0.0, by_rows.log_probability or 0.0
    if not abs(told - got) <= allowed:
        raise CheckpointError(
            "vLLM reads token ids of this decoder otherwise than their rows of its token embeddings: the likeliest "
            f"token's log-probability is {told:.3f} and {got:.3f}; serve it with another decoder"
        )


def refuse_other_steps(by_steps: Sequence[Pick], at_once: Sequence[Pick], allowed: float) -> None:
    """Raise CheckpointError if log-probabilities go apart on average: token by token, and after all read at once."""
    pairs = list(zip(by_steps, at_once, strict=True))
    apart = sum(abs((one.log_probability or 0.0) - (other.log_probability or 0.0)) for one, other in pairs) / len(pairs)
    if not apart <= allowed:
        raise CheckpointError(
            "vLLM computes this decoder otherwise token by token than for a whole prompt: the likeliest tokens' "
            f"log-probabilities differ by {apart:.3f} on average, and {allowed:g} is allowed; its kernels for this "
            "device are at fault, so serve it on another device or with another decoder (docs/decoders.md says which "
            "hybrid decoders run on a CPU)"
        )


def embed(request: DecoderRequest, embeddings: TokenEmbeddings) -> Tensor:
    """Return the prompt's rows (S, D), or raise InvalidRequest for one that the engine would not survive.

    A row of another width ends vLLM's engine; one that is not finite spoils a block of the KV cache for whoever gets
    that block next, and vLLM tells nobody.
    """
    prompt = request.prompt
    num_rows, width = prompt.chunk_embeddings.shape
    if num_rows and width != embeddings.width:
        raise InvalidRequest(
            f"prompt_embedding_table has rows of width {width}; the decoder's width is {embeddings.width}"
        )
    rows = embeddings.embed_prompt(prompt.input_ids, prompt.chunk_embeddings)
    if not torch.isfinite(rows).all():
        raise InvalidRequest(
            f"prompt_embedding_table holds values that are not finite in {str(rows.dtype).removeprefix('torch.')}, the "
            "decoder's dtype; send smaller ones, or have dtype set to float32 or bfloat16"
        )
    return rows.contiguous()


def read_eos_ids(options: EngineOptions) -> set[int]:
    """Return the token ids that end an answer: those of the generation config, else of the config."""
    try:
        config = GenerationConfig.from_pretrained(options.folder, local_files_only=True)
    except OSError:
        config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(options.folder, local_files_only=True))
    eos = config.eos_token_id
    return set(eos) if isinstance(eos, list) else {eos} - {None}


def _prepare_process(options: EngineOptions) -> None:
    """Set what vLLM reads when it is imported; raise SetupError if this process would corrupt tensors."""
    refuse_numpy_2(np.__version__)
    for name, value in options.variables().items():
        os.environ.setdefault(name, value)
    # Triton starts its models in the C locale, in which torch's compiler cannot read its own files.
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")


def refuse_numpy_2(version: str) -> None:
    """Raise SetupError for a NumPy that the embedded server's Python processes silently read wrong values with."""
    if int(version.partition(".")[0]) >= 2:
        raise SetupError(
            f"this environment has NumPy {version}, with which Triton's Python models get wrong values without an "
            f"error; NumPy 1.26 must come first in it: {INSTALL}"
        )


def _engine_arguments(options: EngineOptions) -> Any:
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
    except ImportError as error:
        raise SetupError(f"vLLM cannot be imported ({error}); {INSTALL}") from error
    arguments = options.engine_arguments()
    refuse_unknown(options.further, [field.name for field in fields(AsyncEngineArgs)])
    if current_platform.is_cpu():
        # Compiling takes minutes on a CPU, and makes a step no faster.
        arguments.setdefault("enforce_eager", True)
    engine_arguments = AsyncEngineArgs(**arguments)
    if current_platform.is_cpu() and _has_state(engine_arguments):
        _suit_state_on_cpu(engine_arguments, options.further)
    return engine_arguments


def _suit_state_on_cpu(arguments: Any, further: Collection[str]) -> None:
    """Keep a decoder with layers of state from vLLM's CPU kernels that end its engine or compute something else.

    The scan of Mamba 2 returns the state after a whole prompt alone, but the prefix cache takes it after each block.
    The rotation of LFM2's queries and keys reaches their first head alone, which vLLM's own PyTorch code does not.
    """
    if "enable_prefix_caching" not in further:
        arguments.enable_prefix_caching = False
    if "compilation_config" not in further:
        arguments.compilation_config.custom_ops.append("-rotary_embedding")


def _has_state(arguments: Any) -> bool:
    """Return whether layers of the decoder keep other state than keys and values, as far as vLLM knows it."""
    try:
        return bool(arguments.create_model_config().has_inner_state)
    except Exception as error:
        raise _cannot_serve(error) from error


def _check_positions(options: EngineOptions) -> None:
    config = AutoConfig.from_pretrained(options.folder, local_files_only=True).get_text_config()
    if fault := short_table_fault(config, options.window):
        raise CheckpointError(f"the decoder vllm cannot serve {options.folder}: {fault}")


def _start(arguments: Any, engine_stats: EngineStats) -> Any:
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(arguments, stat_loggers=[engine_stats.logger])
    except Exception as error:
        raise _cannot_serve(error) from error


def _cannot_serve(error: Exception) -> SetupError:
    return SetupError(
        f"vLLM cannot serve this decoder with these arguments: {type(error).__name__}: {error}; the server's log has "
        "what its processes said"
    )


def _tokens_of(output: Any) -> Tokens:
    [completion] = output.outputs
    chosen = completion.logprobs or [None] * len(completion.token_ids)
    picks = [
        Pick(token_id, None if values is None else values[token_id].logprob)
        for token_id, values in zip(completion.token_ids, chosen, strict=True)
    ]
    return Tokens(picks, output.metrics.scheduled_ts if output.metrics else None)


def _dead(error: Exception | None = None) -> ServerUnavailable:
    told = f" ({error})" if error is not None and str(error) else ""
    return ServerUnavailable(
        f"vLLM's engine has died{told} and does not come back by itself; a server that is watched starts again, so ask "
        "again later"
    )
