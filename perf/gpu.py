"""Everything that a GPU has to show, in the order of what matters most, within a time that is set.

    make gpu        or: python -m perf.gpu --output build/gpu.json
    python -m perf.gpu --tiny        the same on the CPU at tiny shapes, to see that it runs

It needs torch and transformers, and nothing else of what this project installs. Each result is written as it comes, so
that a machine that is taken away leaves what it has shown; a part that fails leaves its error, and the next one runs.

    equality    greedy tokens of the engine, batched and with CUDA graphs, against Hugging Face's cache and attention:
                the share of equal tokens in float32 and in bfloat16, where equally likely tokens may change places
    decoding    tokens per second of a full batch with CUDA graphs and without; of the read floor: the time that reading
                the weights once takes at the measured bandwidth, as a share of a step's time
    prefill     perf.prefill: plain, cached and not cached, at lengths of the paper; of the peak: as there
    training    tokens per second of a forward and a backward pass and an update, at the shape of SmolLM2-135M
"""

import argparse
import json
import random
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from perf.decoders import make_decoder, make_tokenizer
from perf.prefill import Machine, device_name, measure
from perf.results import Report, describe_run
from refrag.decoders.base import MixedPrompt
from refrag.engine.engine import Engine
from refrag.engine.generation import generate
from refrag.engine.request import EngineRequest
from refrag.engine.settings import EngineSettings
from refrag.model.decoder import Decoder
from refrag.request import SamplingParams

SMOLLM2_135M: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
TINY_TRAINED: dict[str, Any] = {
    **SMOLLM2_135M,
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}


@dataclass(frozen=True)
class PrefillPlan:
    """A run of perf.prefill."""

    shape: str
    context_tokens: list[int]
    batch: list[int]
    chunk_sizes: list[int] = field(default_factory=lambda: [8, 16, 32])
    expand_fractions: list[float] = field(default_factory=lambda: [0.0, 0.1])
    rounds: int = 1


@dataclass(frozen=True)
class Plan:
    """The measurements to make, and the device for them."""

    device: str
    dtype: str
    equality_shape: str
    decode_shape: str
    batch: int
    num_tokens: int
    kv_cache_mib: int
    block_size: int
    prefill: list[PrefillPlan]
    trained: dict[str, Any]
    trained_batch: tuple[int, int]


ON_GPU = Plan(
    device="cuda",
    dtype="bfloat16",
    equality_shape="30m",
    decode_shape="llama-2-7b",
    batch=16,
    num_tokens=64,
    kv_cache_mib=40_960,
    block_size=128,
    prefill=[
        PrefillPlan("llama-2-7b", [512, 2048, 16_384], [1]),
        PrefillPlan("llama-3.1-8b", [512, 2048, 16_384], [1]),
        PrefillPlan("llama-3.1-8b", [2048], [8, 16], chunk_sizes=[16]),
        PrefillPlan("llama-2-7b", [65_536], [1], chunk_sizes=[16, 32], expand_fractions=[0.0]),
    ],
    trained=SMOLLM2_135M,
    trained_batch=(16, 1024),
)
TINY = Plan(
    device="cpu",
    dtype="float32",
    equality_shape="30m",
    decode_shape="30m",
    batch=2,
    num_tokens=4,
    kv_cache_mib=256,
    block_size=16,
    prefill=[PrefillPlan("30m", [64], [1, 2], chunk_sizes=[16])],
    trained=TINY_TRAINED,
    trained_batch=(2, 32),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MIB, GIB = 2**20, 2**30


def compare_with_hugging_face(plan: Plan, dtype: str) -> Report:
    decoder = make_decoder(plan.equality_shape, plan.device, DTYPES[dtype])
    tokenizer, rng = make_tokenizer(decoder.vocab_size), random.Random(0)
    engine = open_engine(plan, decoder, max_active=plan.batch)
    sampling = SamplingParams(max_tokens=plan.num_tokens)
    prompts = [draw_mixed_prompt(decoder, rng, 8 + 8 * index) for index in range(plan.batch)]
    expected = [
        [token for delta in generate(decoder, tokenizer, prompt, sampling) for token in delta.token_ids]
        for prompt in prompts
    ]
    found = answer_all(engine, prompts, sampling)
    pairs = zip(found, expected, strict=True)
    equal = [first == second for one, other in pairs for first, second in zip_longest(one, other)]
    return {
        "dtype": dtype,
        "records_graphs": engine.runner.graphs is not None,
        "num_prompts": len(prompts),
        "share_of_equal_tokens": round(statistics.mean(equal), 4),
    }


def measure_decoding(plan: Plan) -> Report:
    decoder = make_decoder(plan.decode_shape, plan.device, DTYPES[plan.dtype])
    engine = open_engine(plan, decoder, max_active=plan.batch)
    floor = weight_bytes(decoder) / measure_bandwidth(plan.device)
    report: Report = {"shape": plan.decode_shape, "batch": plan.batch, "read_floor_ms": round(1e3 * floor, 3)}
    ways = {"with_graphs": engine.runner.graphs, "without_graphs": None}
    for name, graphs in ways.items():
        if name == "with_graphs" and graphs is None:
            report[name] = "none were recorded"
            continue
        engine.runner.graphs = graphs
        seconds = min(time_decoding_step(plan, engine, decoder) for _ in range(2))
        report[name] = {
            "step_ms": round(1e3 * seconds, 3),
            "tokens_per_second": round(plan.batch / seconds, 1),
            "share_of_read_floor": round(floor / seconds, 3),
        }
    return report


def time_decoding_step(plan: Plan, engine: Engine, decoder: Decoder) -> float:
    """Return the seconds of one step of a full batch: the median, once every prompt has been read."""
    rng, steps = random.Random(1), []
    for _ in range(plan.batch):
        engine.add(EngineRequest(draw_mixed_prompt(decoder, rng, 32), SamplingParams(max_tokens=plan.num_tokens)))
    while engine.has_work:
        start = time.perf_counter()
        outputs = list(engine.step())
        synchronize(plan.device)
        if len(outputs) == plan.batch:
            steps.append(time.perf_counter() - start)
    return statistics.median(steps)


def measure_prefill(plan: Plan, run: PrefillPlan) -> Report:
    options = argparse.Namespace(
        **vars(run),
        device=plan.device,
        dtype=plan.dtype,
        kv_cache_mib=plan.kv_cache_mib,
        max_step_slots=8192,
        max_whole_slots=16_384,
        encoder_batch=256,
    )
    machine = Machine(run.shape, options)
    peak = machine.measure_peak()
    return {"shape": run.shape, "peak_tflops": round(peak / 1e12, 3), "rows": measure(machine, peak, options)}


def measure_training(plan: Plan, num_steps: int = 4) -> Report:
    """Time updates by AdamW on whole rows of random tokens, without the data and the stages of the recipe."""
    with torch.device(plan.device):
        model = LlamaForCausalLM(LlamaConfig(**plan.trained))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(plan.trained["vocab_size"], plan.trained_batch, device=plan.device)
    seconds = []
    for _ in range(num_steps):
        synchronize(plan.device)
        start = time.perf_counter()
        with torch.autocast(torch.device(plan.device).type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(plan.device)
        seconds.append(time.perf_counter() - start)
    # The first step warms up.
    step = statistics.median(seconds[1:])
    return {"batch": list(plan.trained_batch), "tokens_per_second": round(ids.numel() / step, 1)}


def parts_of(plan: Plan) -> Iterator[tuple[str, Callable[[], Report]]]:
    for dtype in ("float32", "bfloat16"):
        yield f"equality in {dtype}", lambda dtype=dtype: compare_with_hugging_face(plan, dtype)  # type: ignore[misc]
    yield "decoding", lambda: measure_decoding(plan)
    for run in plan.prefill:
        name = f"prefill of {run.shape}, {max(run.context_tokens)} tokens, batch {max(run.batch)}"
        yield name, lambda run=run: measure_prefill(plan, run)  # type: ignore[misc]
    yield "training", lambda: measure_training(plan)


def run_parts(plan: Plan, minutes: float, output: Path) -> Report:
    """Run the parts in order until the time is spent, and write the report after each."""
    started = time.monotonic()
    report = {**describe_run("perf.gpu"), "device": device_name(plan.device), "parts": {}}
    for name, run in parts_of(plan):
        before = time.monotonic()
        if before - started > 60 * minutes:
            result: Report = {"left_out": f"the {minutes:g} minutes were spent"}
        else:
            result = _try(run)
            result["seconds"] = round(time.monotonic() - before, 1)
        report["parts"][name] = result
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"{name}: {json.dumps(result)}", flush=True)
    return report


def _try(run: Callable[[], Report]) -> Report:
    try:
        return run()
    except Exception as error:
        # Whatever goes wrong in one part, the next ones are measured.
        return {"error": "".join(traceback.format_exception(error))}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_engine(plan: Plan, decoder: Decoder, max_active: int) -> Engine:
    settings = EngineSettings(
        kv_cache_mib=min(plan.kv_cache_mib, 8192), block_size=plan.block_size, max_active=max_active
    )
    return Engine(decoder, make_tokenizer(decoder.vocab_size), 1024, settings)


def draw_mixed_prompt(decoder: Decoder, rng: random.Random, num_tokens: int) -> MixedPrompt:
    """Return a prompt of four chunk embeddings and some tokens."""
    rows = torch.randn(4, decoder.width, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    ids = [decoder.vocab_size + row for row in range(4)]
    ids += [rng.randrange(3, decoder.vocab_size) for _ in range(num_tokens)]
    scale = float(decoder.token_embeddings.weight.float().std())
    return MixedPrompt(torch.tensor(ids), scale * rows)


def answer_all(engine: Engine, prompts: list[MixedPrompt], sampling: SamplingParams) -> list[list[int]]:
    requests = [EngineRequest(prompt, sampling) for prompt in prompts]
    answers: dict[EngineRequest, list[int]] = {request: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
            assert output.delta is not None
            answers[output.request] += output.delta.token_ids
    return list(answers.values())


def weight_bytes(decoder: Decoder) -> int:
    return sum(weight.numel() * weight.element_size() for weight in decoder.parameters())


def measure_bandwidth(device: str) -> float:
    """Return the bytes per second that a sum over a large tensor reads, at best."""
    tensor = torch.ones((GIB if torch.device(device).type == "cuda" else 64 * MIB) // 4, device=device)
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        tensor.sum()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return tensor.numel() * 4 / min(seconds)


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU, to see that every part runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins later (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("build/gpu.json"), help="default: %(default)s")
    options = parser.parse_args()
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("torch finds no CUDA device; add --tiny to see on the CPU that every part runs")
    report = run_parts(TINY if options.tiny else ON_GPU, options.minutes, options.output)
    failed = [name for name, part in report["parts"].items() if "error" in part]
    if failed:
        parser.exit(1, f"failed: {', '.join(failed)}; {options.output} has the errors\n")


if __name__ == "__main__":
    main()
