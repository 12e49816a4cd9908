"""The decoder `vllm`: vLLM's engine, for architectures and for numbers of GPUs and nodes that `torch` does not serve.

It runs in a Python environment of its own, which `refrag decoders install vllm` makes; docs/decoders.md tells more.
"""

import json
import shlex
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from refrag.config import RefragConfig
from refrag.decoders.async_worker import AsyncWorker
from refrag.decoders.base import DecoderRequest, Limits, Observe, Sink
from refrag.decoders.vllm_engine import VllmEngine
from refrag.decoders.vllm_options import EngineOptions, check_sampling, refuse_set_elsewhere
from refrag.decoders.worker import WorkerDecoder
from refrag.errors import SetupError

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class VllmSettings:
    """Settings of vLLM's engine. Raises SetupError for values that are not allowed.

    dtype: type of weights and KV cache; float32, bfloat16 or float16. num_threads: CPU threads, 0 for all cores.
    kv_cache_mib: MiB of memory for keys and values, taken at start.
    max_active: requests that are computed together. max_waiting: requests that may wait; more are refused.
    max_step_slots: slots computed in one step at most.
    engine_arguments: more arguments of vLLM's engine, as `name=value` with spaces between them; each value is JSON or
        text: tensor_parallel_size=2 distributed_executor_backend=ray
    """

    dtype: str = "float32"
    num_threads: int = 0
    kv_cache_mib: int = 1024
    max_active: int = 32
    max_waiting: int = 256
    max_step_slots: int = 2048
    engine_arguments: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SetupError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        if self.num_threads < 0:
            raise SetupError(f"num_threads is {self.num_threads}; it must be at least 0, which takes all cores")
        for name in ("kv_cache_mib", "max_active", "max_waiting", "max_step_slots"):
            if (value := getattr(self, name)) < 1:
                raise SetupError(f"{name} is {value}; it must be at least 1")
        refuse_set_elsewhere(self.further_arguments)

    @cached_property
    def further_arguments(self) -> dict[str, Any]:
        """Return the engine arguments by name."""
        try:
            words = shlex.split(self.engine_arguments)
        except ValueError as error:
            raise SetupError(f"engine_arguments is {self.engine_arguments!r}: {error}") from None
        return dict(map(_parse_argument, words))


class VllmDecoder(WorkerDecoder):
    """vLLM's engine behind a thread with an event loop. See `DecoderBackend`."""

    settings_type: ClassVar[type[VllmSettings]] = VllmSettings
    worker: AsyncWorker

    def __init__(self, checkpoint: Path, settings: VllmSettings, observe: Observe) -> None:
        window = RefragConfig.load(checkpoint).max_prompt_slots
        options = EngineOptions(
            checkpoint=checkpoint,
            window=window,
            dtype=settings.dtype,
            num_threads=settings.num_threads,
            kv_cache_mib=settings.kv_cache_mib,
            max_active=settings.max_active,
            max_waiting=settings.max_waiting,
            max_step_slots=settings.max_step_slots,
            further=settings.further_arguments,
        )
        self.worker = AsyncWorker(partial(VllmEngine.open, options, observe), observe)
        engine = self.worker.engine
        assert isinstance(engine, VllmEngine)
        self.limits = Limits(engine.embeddings.vocab_size, engine.embeddings.width, window)

    def submit(self, request: DecoderRequest, sink: Sink) -> None:
        check_sampling(request.sampling)
        self.worker.submit(request, sink)

    def end_requests(self) -> None:
        self.worker.end_requests()


def _parse_argument(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not (name and equals):
        raise SetupError(f"engine_arguments holds {word!r}; write name=value, with spaces between arguments")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text
