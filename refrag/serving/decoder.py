"""Last step of the graph: mixed prompt → streamed answer, from the engine's worker while execute() returns at once."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refrag.config import RefragConfig
from refrag.engine.engine import Engine, EngineSettings
from refrag.engine.generation import Delta, MixedPrompt, check_prompt, join_deltas
from refrag.engine.prefix import block_keys
from refrag.engine.request import Request
from refrag.engine.worker import EngineWorker
from refrag.errors import InvalidRequest, RefragError, SetupError
from refrag.machine.allocator import keep_freed_memory
from refrag.machine.environment import compute_alone
from refrag.model.checkpoint import load_decoder
from refrag.model.decoder import Decoder
from refrag.model.tokenizers import load_decoder_tokenizer
from refrag.request import SamplingParams
from refrag.serving.decoder_metrics import EngineMetrics
from refrag.serving.tensors import Tensors, flag, float32, int32, integer, scalar, strings, texts
from refrag.serving.triton import ResponseStream, tensors_of

# S slots, R rows of chunk embeddings, D decoder width

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
# What the graph tells the client through the decoder, and what stands for it when the decoder is called directly.
PASS_THROUGH = {
    "context_tokens": int32(0),
    "num_chunks": int32(0),
    "num_stored_chunks": int32(0),
    "expanded_chunks": int32(),
}


@dataclass(frozen=True)
class DecoderSettings(EngineSettings):
    """Those of the engine, and

    device: cpu, cuda or cuda:N. dtype: of weights and KV cache; float32, bfloat16 or float16.
    num_threads: CPU threads of the decoder, 0 for all cores.
    default_max_tokens, default_deadline_ms: for requests that do not say.
    max_deadline_ms: longer deadlines are cut to this, so that no request whose caller is gone holds its place for long.
    """

    device: str = "cpu"
    dtype: str = "float32"
    num_threads: int = 0
    default_max_tokens: int = 64
    default_deadline_ms: int = 60_000
    max_deadline_ms: int = 600_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise SetupError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        if not DEVICE.fullmatch(self.device):
            raise SetupError(f"device is {self.device!r}; it must be cpu, cuda or cuda:N")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise SetupError(
                f"device is {self.device!r}, but torch finds no CUDA device; set it to cpu, or install a CUDA build of "
                "torch and give the server's container a GPU"
            )


class DecoderService:
    """Takes requests by their tensors, and sends their responses from the engine's worker."""

    decoder: Decoder

    def __init__(self, checkpoint: Path, settings: DecoderSettings) -> None:
        keep_freed_memory()
        num_cores = compute_alone()
        self.settings = settings
        self.max_prompt_slots = RefragConfig.load(checkpoint).max_prompt_slots
        self.metrics = EngineMetrics()
        num_threads = settings.num_threads or num_cores
        self.worker = EngineWorker(lambda: self._open_engine(checkpoint, num_threads), self.metrics.observe)

    def _open_engine(self, checkpoint: Path, num_threads: int) -> Engine:
        torch.set_num_threads(num_threads)
        self.decoder = load_decoder(checkpoint, DTYPES[self.settings.dtype]).to(self.settings.device)
        return Engine(self.decoder, load_decoder_tokenizer(checkpoint), self.max_prompt_slots, self.settings)

    def accept(self, request: Any) -> None:
        """Queue the request, or act on a stop; any error goes into its stream."""
        stream = ResponseStream(request)
        try:
            request_id, inputs = request.request_id(), tensors_of(request)
            if flag(inputs, "stop", default=False):
                self.worker.stop(request_id)
                stream.close()
            else:
                self._submit(request_id, inputs, stream)
        except Exception as error:
            stream.fail(error)

    def close(self) -> None:
        self.worker.close()
        self.metrics.close()

    def _submit(self, request_id: str, inputs: Tensors, stream: ResponseStream) -> None:
        prompt, sampling = read_prompt(inputs), self._read_sampling(inputs)
        check_prompt(prompt, sampling, self.decoder, self.max_prompt_slots)
        arrival = read_arrival(inputs)
        request = Request(
            prompt=prompt,
            sampling=sampling,
            request_id=request_id,
            deadline=arrival + self._read_timeout(inputs),
            priority=integer(inputs, "priority") or 0,
            arrival=arrival,
            keys=block_keys(prompt, self.settings.block_size, self.decoder.vocab_size),
        )
        sink_type = StreamingSink if flag(inputs, "streaming", default=True) else CollectingSink
        # Copies, as of the prompt: a tensor's memory belongs to its request, which is gone once execute() has returned.
        statistics = {name: np.array(inputs.get(name, default)) for name, default in PASS_THROUGH.items()}
        self.worker.submit(request, sink_type(stream, Statistics(statistics, len(prompt.input_ids))))

    def _read_sampling(self, inputs: Tensors) -> SamplingParams:
        max_tokens, repetition_penalty = integer(inputs, "request_output_len"), scalar(inputs, "repetition_penalty")
        return SamplingParams(
            max_tokens=self.settings.default_max_tokens if max_tokens is None else max_tokens,
            # FP32 has no 0.01, the least that is allowed.
            temperature=round(scalar(inputs, "temperature") or 0.0, 6),
            top_k=integer(inputs, "runtime_top_k"),
            top_p=scalar(inputs, "runtime_top_p"),
            seed=integer(inputs, "random_seed"),
            repetition_penalty=1.0 if repetition_penalty is None else repetition_penalty,
            min_tokens=integer(inputs, "min_tokens") or 0,
            stop_words=tuple(texts(inputs, "stop_words")),
            log_probabilities=flag(inputs, "return_log_probs", default=False),
        )

    def _read_timeout(self, inputs: Tensors) -> float:
        """Seconds from the request's arrival in the graph."""
        milliseconds = integer(inputs, "deadline_ms")
        if milliseconds is None:
            milliseconds = self.settings.default_deadline_ms
        if milliseconds < 1:
            raise InvalidRequest(f"deadline_ms is {milliseconds}; it must be at least 1")
        return min(milliseconds, self.settings.max_deadline_ms) / 1e3


class Statistics:
    """What every response tells of its request besides the text."""

    def __init__(self, passed_through: dict[str, np.ndarray], prompt_slots: int) -> None:
        self.tensors = {
            **passed_through,
            "num_expanded_chunks": int32(passed_through["expanded_chunks"].size),
            "prompt_slots": int32(prompt_slots),
        }


class StreamingSink:
    """One response for each delta."""

    def __init__(self, stream: ResponseStream, statistics: Statistics) -> None:
        self.stream, self.statistics = stream, statistics
        self.index, self.num_tokens = 0, 0

    def send(self, delta: Delta) -> None:
        self.num_tokens += len(delta.token_ids)
        response = {
            "text_output": strings(delta.text),
            "token_ids": int32(*delta.token_ids),
            "output_log_probs": float32(*delta.log_probabilities),
            "index": int32(self.index),
            "finish_reason": strings(delta.finish_reason or ""),
            "num_output_tokens": int32(self.num_tokens),
            **self.statistics.tensors,
        }
        self.index += 1
        if delta.finish_reason is None:
            self.stream.send(response)
        else:
            self.stream.finish(response)

    def fail(self, error: RefragError) -> None:
        self.stream.fail(error)

    def is_abandoned(self) -> bool:
        return self.stream.is_cancelled()


class CollectingSink(StreamingSink):
    """One response with the whole answer, for callers that cannot stream."""

    def __init__(self, stream: ResponseStream, statistics: Statistics) -> None:
        super().__init__(stream, statistics)
        self.deltas: list[Delta] = []

    def send(self, delta: Delta) -> None:
        self.deltas.append(delta)
        if delta.finish_reason is not None:
            super().send(join_deltas(self.deltas))


def read_arrival(inputs: Tensors) -> float:
    """When the request reached the graph, in seconds of the monotonic clock, which all its processes share."""
    now = time.monotonic_ns()
    return min(now, integer(inputs, "arrival_time_ns") or now) / 1e9


def read_prompt(inputs: Tensors) -> MixedPrompt:
    """The neutral decoder contract: ids with placeholders, and the table of rows they point into."""
    if "input_ids" not in inputs:
        raise InvalidRequest("input_ids is missing; send a prompt, or stop=true with the id of the request to stop")
    input_ids = torch.from_numpy(inputs["input_ids"].reshape(-1).astype(np.int64))
    if "prompt_embedding_table" not in inputs:
        return MixedPrompt(input_ids, torch.zeros(0, 0))
    return MixedPrompt(input_ids, torch.tensor(inputs["prompt_embedding_table"]))
