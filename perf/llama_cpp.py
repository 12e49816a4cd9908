"""Answers prompts by llama.cpp's own server, as it comes in the wheel of xllamacpp, to be measured beside ours.

    pip install xllamacpp
    python -m perf.llama_cpp SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-Instruct.Q8_0.gguf
    python -m perf.peers --gguf SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-Instruct.Q8_0.gguf

The second line writes the same weights in 8 bits, 32 to a scale. The wheel chooses among builds for several processors
when it is loaded.
"""

import argparse
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

# One answer may take this long, since long prompts are read at a few dozen tokens a second.
TIMEOUT_SECONDS = 1800.0
STREAM_PREFIX = b"data: "


class LlamaCpp(AbstractContextManager["LlamaCpp"]):
    """A server of one GGUF file on a free port of this machine, with `num_sequences` of `window` tokens at a time."""

    def __init__(self, gguf: Path, window: int, num_threads: int, num_sequences: int = 1) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(gguf)
        settings.n_ctx, settings.n_parallel = window * num_sequences, num_sequences
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
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as lines:
                for line in lines:
                    if line.startswith(STREAM_PREFIX):
                        first = first or time.perf_counter()
                        piece = json.loads(line.removeprefix(STREAM_PREFIX))
        except urllib.error.HTTPError as error:
            # It has no window beyond the one that the weights were trained with.
            said = error.read().decode(errors="replace")
            raise RuntimeError(f"llama.cpp refused a prompt of {len(prompt):,} tokens: {said}") from error
        num_predicted = piece.get("tokens_predicted")
        assert first is not None and num_predicted == num_tokens, f"llama.cpp: {num_predicted} of {num_tokens} tokens"
        return first - start, time.perf_counter() - start

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server = None


def write_q8_0(source: Path, target: Path) -> None:
    """Write a GGUF file whose matrices have Q8_0, from one of any other kind; all else is copied."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1])
    kind = GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a GGUF file")
    parser.add_argument("target", type=Path, help="the one to write, in Q8_0")
    options = parser.parse_args()
    write_q8_0(options.source, options.target)


if __name__ == "__main__":
    main()
