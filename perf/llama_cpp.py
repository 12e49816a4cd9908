"""Answers prompts by llama.cpp's own server, as it comes in the wheel of xllamacpp, to be measured beside ours.

    pip install xllamacpp       python -m perf.peers --gguf SmolLM2-135M-Instruct.Q4_1.gguf

The wheel's build is for AVX2; one made for the machine at hand may be faster.
"""

import json
import time
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

# One answer may take this long, since long prompts are read at a few dozen tokens a second.
TIMEOUT_SECONDS = 1800.0
STREAM_PREFIX = b"data: "


class LlamaCpp(AbstractContextManager["LlamaCpp"]):
    """A server of one GGUF file on a free port of this machine, with a single sequence of `window` tokens."""

    def __init__(self, gguf: Path, window: int, num_threads: int) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(gguf)
        settings.n_ctx, settings.n_parallel = window, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = num_threads
        settings.port, settings.verbosity = 0, 0
        self.release: str = xllamacpp.__version__
        self._server: Any = xllamacpp.Server(settings)

    def answer(self, prompt: Sequence[int], num_tokens: int) -> tuple[float, float]:
        """Return the seconds to the first and to the last of the answer's `num_tokens` tokens."""
        # Without the cache of prompts: every prompt is read from its first token, as for the other ways.
        body = {"prompt": list(prompt), "n_predict": num_tokens, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(
            f"{self._server.listening_address}/completion",
            json.dumps({**body, "temperature": 0.0, "cache_prompt": False}).encode(),
            {"Content-Type": "application/json"},
        )
        start, first, piece = time.perf_counter(), None, {}
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as lines:
            for line in lines:
                if line.startswith(STREAM_PREFIX):
                    first = first or time.perf_counter()
                    piece = json.loads(line.removeprefix(STREAM_PREFIX))
        num_predicted = piece.get("tokens_predicted")
        assert first is not None and num_predicted == num_tokens, f"llama.cpp: {num_predicted} of {num_tokens} tokens"
        return first - start, time.perf_counter() - start

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server = None
