"""Measures the paper's latency curve in process: a decoder's time to first token over context length.

    python -m perf.prefill 30m --output perf/results/prefill.json
    python -m perf.prefill llama-2-7b --device cuda --dtype bfloat16 --kv-cache-mib 49152 --max-step-slots 8192 \\
        --max-whole-slots 16384 --context-tokens 512 2048 8192 16384 65536 --batch 1 8

Decoders of any geometry can be measured: weights are random, since time does not depend on what they know. There is no
server, and nothing is tokenised; perf.ttft measures the whole of a served checkpoint.

    plain         the engine's prefill of all context tokens and the question, to the first token of every prompt of the
                  batch
    cached        the same with one slot for each chunk that is not expanded; the chunk embeddings are already there
    not cached    the same after the encoder and the projector have made the chunk embeddings; the encoder has RoBERTa's
                  shape and the size that the paper uses with such a decoder
    speed-up      plain over the way: median of the ratios within a round; analytic: the paper's model
                  (perf/analytic.py)
    of the peak   the decoder's floating-point operations per second, as a share of what a product of two large matrices
                  reaches on the same machine in the same run; the operations are the paper's count for all layers but
                  the last, which the engine computes for one slot of a prompt only

Lengths that do not fit the memory for keys and values are left out, and named. The ways take turns; the figures are
medians over rounds after one round of warm-up. The last line of the output is the report as one JSON object.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import RobertaConfig, RobertaModel

from perf.analytic import predicted_speedup, prefill_flops
from perf.decoders import SHAPES, make_decoder, make_tokenizer
from perf.results import Report, describe_run, emit, median_ratio, summarise
from refrag.decoders.base import MixedPrompt
from refrag.engine.engine import Engine
from refrag.engine.kv_cache import bytes_per_slot
from refrag.engine.request import EngineRequest
from refrag.engine.settings import EngineSettings
from refrag.engine.support import layer_shapes
from refrag.model.encoder import ChunkEncoder, encode_in_batches
from refrag.model.projector import Projector
from refrag.policies.budget import expansion_budget
from refrag.reporting import table
from refrag.request import SamplingParams

# B prompts of a batch, S slots, C chunks, K tokens per chunk, D decoder width

QUESTION_TOKENS = 16
MIB = 2**20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# RoBERTa-large beside decoders of billions of parameters, as in the paper; a small one beside a small one.
ROBERTA_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "30m": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    "llama-2-7b": ROBERTA_LARGE,
    "llama-3.1-8b": ROBERTA_LARGE,
}
# Square matrices of this width are large enough for a product to show what the machine can do.
PEAK_WIDTH = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Case:
    """The geometry of a prompt; `chunk_size` is None for the plain one."""

    context_tokens: int
    chunk_size: int | None = None
    expand_fraction: float = 0.0

    @property
    def num_chunks(self) -> int:
        return 0 if self.chunk_size is None else math.ceil(self.context_tokens / self.chunk_size)

    @property
    def num_compressed(self) -> int:
        return self.num_chunks - expansion_budget(self.expand_fraction, self.num_chunks)

    @property
    def num_slots(self) -> int:
        num_expanded = self.num_chunks - self.num_compressed
        num_tokens = self.context_tokens if self.chunk_size is None else num_expanded * self.chunk_size
        return self.num_compressed + num_tokens + QUESTION_TOKENS


class Machine:
    """A decoder, its engine, and an encoder beside it, on one device."""

    def __init__(self, shape: str, options: argparse.Namespace) -> None:
        self.device, dtype = options.device, DTYPES[options.dtype]
        self.decoder = make_decoder(shape, self.device, dtype)
        settings = EngineSettings(
            kv_cache_mib=options.kv_cache_mib,
            max_step_slots=options.max_step_slots,
            max_whole_slots=options.max_whole_slots,
        )
        window = self._find_window(settings)
        self.engine = Engine(self.decoder, make_tokenizer(self.decoder.vocab_size), window, settings)
        with torch.device(self.device):
            roberta: Any = RobertaModel(RobertaConfig(**ENCODERS[shape], dtype=dtype), add_pooling_layer=False)
            self.encoder = ChunkEncoder(roberta.to(dtype).eval(), "cls")
            self.projector = Projector(self.encoder.width, self.decoder.width).to(dtype).eval()
        self.encoder_batch, self.rng = options.encoder_batch, random.Random(0)

    def _find_window(self, settings: EngineSettings) -> int:
        """Return the decoder's window, or as many slots of it as the memory for keys and values holds."""
        window: int = self.decoder.backbone.config.max_position_embeddings
        num_bytes = bytes_per_slot(layer_shapes(self.decoder, window), self.decoder.token_embeddings.weight.dtype)
        # The engine keeps a block for the rows that fill up a recorded step.
        held = settings.kv_cache_mib * MIB // num_bytes - 2 * settings.block_size
        return min(window, held)

    def prefill(self, case: Case, batch: int) -> float:
        """Return the seconds until all prompts of a batch have their first token; they share nothing to reuse."""
        requests = [self._request(case) for _ in range(batch)]
        self._synchronize()
        start = time.perf_counter()
        for request in requests:
            self.engine.add(request)
        while self.engine.has_work:
            for output in self.engine.step():
                assert output.error is None, output.error
        self._synchronize()
        return time.perf_counter() - start

    @torch.inference_mode()
    def encode(self, case: Case, batch: int) -> float:
        """Return the seconds to encode and project all chunks, expanded ones too: the policy needs them all."""
        assert case.chunk_size is not None, "the plain prompt has no chunks"
        ids = torch.randint(3, 50_000, (batch * case.num_chunks, case.chunk_size), device=self.device)  # (C, K)
        mask = torch.ones_like(ids)
        self._synchronize()
        start = time.perf_counter()
        self.projector(encode_in_batches(self.encoder, ids, mask, self.encoder_batch))
        self._synchronize()
        return time.perf_counter() - start

    def fits(self, case: Case, batch: int) -> bool:
        return batch * (case.num_slots + 1) <= self.engine.pool.num_blocks * self.engine.pool.block_size

    @torch.inference_mode()
    def measure_peak(self, rounds: int = 10) -> float:
        """Return the best floating-point operations per second of several products of two large square matrices."""
        width, dtype = PEAK_WIDTH[torch.device(self.device).type], self.decoder.token_embeddings.weight.dtype
        left, right = (torch.randn(width, width, device=self.device, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(rounds):
            self._synchronize()
            start = time.perf_counter()
            torch.mm(left, right)
            self._synchronize()
            seconds.append(time.perf_counter() - start)
        return 2.0 * width**3 / min(seconds)

    def _request(self, case: Case) -> EngineRequest:
        vocab_size = self.decoder.vocab_size
        num_tokens = case.num_slots - case.num_compressed
        ids = [*range(vocab_size, vocab_size + case.num_compressed)]
        ids += [self.rng.randrange(3, vocab_size) for _ in range(num_tokens)]
        rows: Tensor = torch.randn(case.num_compressed, self.decoder.width)  # (C, D)
        return EngineRequest(MixedPrompt(torch.tensor(ids), rows), SamplingParams(max_tokens=1))

    def _synchronize(self) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()


def measure(machine: Machine, peak: float, options: argparse.Namespace) -> list[Report]:
    lengths = [(batch, num_tokens) for batch in options.batch for num_tokens in options.context_tokens]
    rows = []
    for batch, num_tokens in tqdm(lengths, desc="prefill", disable=None):
        cases = [Case(num_tokens), *compressed_cases(num_tokens, options)]
        rows += measure_length(machine, [case for case in cases if machine.fits(case, batch)], batch, peak, options)
        rows += [
            {"batch": batch, **_describe(case), "left_out": "keys and values do not fit"}
            for case in cases
            if not machine.fits(case, batch)
        ]
    return rows


def compressed_cases(num_tokens: int, options: argparse.Namespace) -> Iterator[Case]:
    for chunk_size in options.chunk_sizes:
        for expand_fraction in options.expand_fractions:
            yield Case(num_tokens, chunk_size, expand_fraction)


def measure_length(
    machine: Machine, cases: list[Case], batch: int, peak: float, options: argparse.Namespace
) -> list[Report]:
    cached: dict[Case, list[float]] = {case: [] for case in cases}
    fresh: dict[Case, list[float]] = {case: [] for case in cases if case.chunk_size is not None}
    for number in range(options.rounds + 1):
        for case in cases:
            seconds = machine.prefill(case, batch)
            encoding = machine.encode(case, batch) if case in fresh else 0.0
            # The first round warms up.
            if number:
                cached[case].append(seconds)
                fresh.get(case, []).append(seconds + encoding)
    return [_row(machine, case, batch, peak, cached, fresh) for case in cases]


def _row(
    machine: Machine,
    case: Case,
    batch: int,
    peak: float,
    cached: dict[Case, list[float]],
    fresh: dict[Case, list[float]],
) -> Report:
    num_layers = machine.decoder.backbone.config.num_hidden_layers - 1
    flops = prefill_flops(case.num_slots, machine.decoder.width, num_layers, batch)
    rate = flops / statistics.median(cached[case])
    row = {"batch": batch, **_describe(case), "ttft": summarise(cached[case]), "share_of_peak": round(rate / peak, 3)}
    if case.chunk_size is not None:
        row["ttft_not_cached"] = summarise(fresh[case])
    plain = Case(case.context_tokens)
    if case.chunk_size is not None and plain in cached:
        row["speedup"] = median_ratio(cached[plain], cached[case])
        row["speedup_not_cached"] = median_ratio(cached[plain], fresh[case])
        row["analytic"] = round(predicted_speedup(plain.num_slots, case.num_slots, machine.decoder.width), 2)
    return row


def _describe(case: Case) -> Report:
    return {
        "context_tokens": case.context_tokens,
        "chunk_size": case.chunk_size,
        "expand_fraction": case.expand_fraction if case.chunk_size else None,
        "prompt_slots": case.num_slots,
    }


def markdown(report: Report) -> str:
    """Return a table, with machine, commit and command."""
    about = (
        f"{report['shape']} in {report['dtype']} on {report['device']}; a product of large matrices reaches "
        f"{report['peak_tflops']:.2f} TFLOP/s. `{report['command']}` on {report['machine']}, commit {report['commit']}."
    )
    return f"{prefill_table(report)}\n\n{about}"


def prefill_table(report: Report) -> str:
    header = [
        "batch",
        "context tokens",
        "way",
        "slots",
        "cached",
        "speed-up",
        "not cached",
        "speed-up",
        "analytic",
        "of the peak",
    ]
    return table(header, [_cells(row) for row in report["rows"]], num_text=0)


def _cells(row: Report) -> list[str]:
    way = "plain" if row["chunk_size"] is None else f"k={row['chunk_size']}, p={row['expand_fraction']:g}"
    place = [str(row["batch"]), f"{row['context_tokens']:,}", way, f"{row['prompt_slots']:,}"]
    if "left_out" in row:
        return [*place, row["left_out"], *[""] * 5]
    return [
        *place,
        _milliseconds(row.get("ttft")),
        _times(row.get("speedup")),
        _milliseconds(row.get("ttft_not_cached")),
        _times(row.get("speedup_not_cached")),
        _times(row.get("analytic")),
        f"{100 * row['share_of_peak']:.0f}%",
    ]


def _milliseconds(summary: Report | None) -> str:
    return "" if summary is None else f"{summary['p50_ms']:,.1f} ms"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="30m", choices=SHAPES)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--context-tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--expand-fractions", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-cache-mib", type=int, default=EngineSettings.kv_cache_mib)
    parser.add_argument("--max-step-slots", type=int, default=EngineSettings.max_step_slots)
    parser.add_argument("--max-whole-slots", type=int, default=EngineSettings.max_whole_slots)
    parser.add_argument("--encoder-batch", type=int, default=256, help="chunks that the encoder reads at once")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device is {options.device}, but torch finds no CUDA device; leave it out for the CPU")
    machine = Machine(options.shape, options)
    peak = machine.measure_peak()
    report = {
        **describe_run("perf.prefill"),
        "shape": options.shape,
        "device": device_name(options.device),
        "dtype": options.dtype,
        "peak_tflops": round(peak / 1e12, 3),
        "rows": measure(machine, peak, options),
    }
    emit(report, markdown, options.output)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "the CPU"


if __name__ == "__main__":
    main()
