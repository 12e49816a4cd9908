"""Measures what weights of 8 bits gain and cost the torch engine on a CPU, in process, against FP32.

    python -m perf.int8 --checkpoint checkpoints/smollm2 --output perf/results/smollm2/int8.json

    perplexity      of each decoder over the same text, windows of --window tokens of Python's documentation
    agreement       share of the tokens before which both have the same likeliest one
    divergence      mean KL(FP32 ‖ int8) of the next token, in nats
    first token     seconds from adding a request of random tokens to its first token, nothing else at work
    tokens/s        of all callers together, from when each has its first token to when each has its last; all prompts
                    and answers are equally long
    speed-up        int8 over FP32: median of the ratios within a round

The two take turns. Figures are medians over rounds, after one round of warm-up. The last line of the output is the
report as one JSON object.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from examples.documentation import read_documentation
from perf.results import Report, describe_run, emit, median_ratio
from refrag.decoders.base import MixedPrompt
from refrag.decoders.torch_engine import TorchSettings, open_engine
from refrag.engine.engine import Engine
from refrag.engine.int8_linear import quantise_decoder
from refrag.engine.request import EngineRequest
from refrag.machine.threads import compute_alone
from refrag.model.checkpoint import load_decoder
from refrag.model.decoder import Decoder
from refrag.model.tokenizers import load_decoder_tokenizer
from refrag.reporting import table
from refrag.request import SamplingParams

WAYS = ("none", "int8")
SPARE_SLOTS = 256
# Tokens of a caller's prompt where only decoding is timed.
SHORT_PROMPT = 64


@torch.inference_mode()
def measure_text(checkpoint: Path, window: int, num_windows: int) -> Report:
    """Read the same text with FP32 and with 8 bits."""
    tokenizer, decoders = load_decoder_tokenizer(checkpoint), [load_decoder(checkpoint) for _ in WAYS]
    quantise_decoder(decoders[1])
    windows = draw_windows(tokenizer.encode("\n\n".join(read_documentation())), window, num_windows)
    losses: list[list[float]] = [[] for _ in WAYS]
    agreements, divergences = [], []
    for ids in tqdm(windows, desc="text", disable=None):
        exact, rounded = (_log_probabilities(decoder, ids) for decoder in decoders)  # (T, V)
        for values, logs in zip(losses, (exact, rounded), strict=True):
            values.append(-float(logs[:-1].gather(1, ids[1:, None]).mean()))
        agreements.append(float((exact.argmax(-1) == rounded.argmax(-1)).float().mean()))
        divergences.append(float((exact.exp() * (exact - rounded)).sum(-1).mean()))
    return {
        "num_tokens": window * len(windows),
        "perplexity": {
            way: round(math.exp(statistics.mean(values)), 3) for way, values in zip(WAYS, losses, strict=True)
        },
        "agreement": round(statistics.mean(agreements), 4),
        "divergence": round(statistics.mean(divergences), 5),
    }


def draw_windows(ids: Sequence[int], window: int, count: int) -> list[torch.Tensor]:
    """Return `count` windows from all over the text; fewer if it is shorter."""
    starts = range(0, len(ids) - window, max(window, (len(ids) - window) // count))
    return [torch.tensor(ids[start : start + window]) for start in starts][:count]


def _log_probabilities(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    return decoder.logits(decoder.read(decoder.token_embeddings(ids).unsqueeze(0))[0]).log_softmax(-1)


def measure_first_tokens(engines: dict[str, Engine], num_slots: int, rounds: int) -> Report:
    def seconds(engine: Engine, rng: random.Random) -> float:
        _add(engine, num_slots, 1, rng)
        return _run(engine)

    times = _take_turns(engines, seconds, rounds)
    return {
        "slots": num_slots,
        "ms": {way: round(1e3 * statistics.median(values), 1) for way, values in times.items()},
        "speedup": median_ratio(times["none"], times["int8"]),
    }


def measure_decoding(engines: dict[str, Engine], callers: int, num_tokens: int, rounds: int) -> Report:
    def rate(engine: Engine, rng: random.Random) -> float:
        for _ in range(callers):
            _add(engine, SHORT_PROMPT, num_tokens, rng)
        begun: set[EngineRequest] = set()
        while len(begun) < callers:
            begun |= {output.request for output in engine.step()}
        # Tokens that came while others' prompts were still read are not counted.
        num_left = sum(num_tokens - len(task.generation.token_ids) for task in engine.tasks.values())
        return num_left / _run(engine)

    rates = _take_turns(engines, rate, rounds)
    return {
        "callers": callers,
        "tokens_per_second": {way: round(statistics.median(values), 1) for way, values in rates.items()},
        "speedup": median_ratio(rates["int8"], rates["none"]),
    }


def _take_turns(
    engines: dict[str, Engine], measure: Callable[[Engine, random.Random], float], rounds: int
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {way: [] for way in engines}
    for number in range(rounds + 1):
        for way, engine in engines.items():
            value = measure(engine, random.Random(number))
            # The first round warms up.
            values[way] += [value] if number else []
    return values


def _add(engine: Engine, num_slots: int, num_tokens: int, rng: random.Random) -> None:
    decoder = engine.runner.decoder
    ids = torch.tensor([rng.randrange(3, decoder.vocab_size) for _ in range(num_slots)])
    sampling = SamplingParams(max_tokens=num_tokens)
    # Without keys no prompt finds blocks of another.
    engine.add(EngineRequest(MixedPrompt(ids, torch.zeros(0, decoder.width)), sampling))


def _run(engine: Engine) -> float:
    start = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


def markdown(report: Report) -> str:
    """Return a table of speeds, and a line of what the rounding costs."""
    rows = [
        *(
            [f"first token of {row['slots']:,} slots", *(f"{row['ms'][way]:,.0f} ms" for way in WAYS), row["speedup"]]
            for row in report["first_tokens"]
        ),
        *(
            [
                f"tokens/s, {row['callers']} caller{'s' * (row['callers'] > 1)}",
                *(f"{row['tokens_per_second'][way]:,.1f}" for way in WAYS),
                row["speedup"],
            ]
            for row in report["decoding"]
        ),
    ]
    cells = [[*row[:3], f"{row[3]:.2f}×"] for row in rows]
    text = report["text"]
    about = (
        f"Perplexity over {text['num_tokens']:,} tokens of Python's documentation: {text['perplexity']['none']:.2f} in "
        f"FP32, {text['perplexity']['int8']:.2f} in 8 bits; the likeliest token is the same before "
        f"{text['agreement']:.1%} of them, and the divergence {text['divergence']:.4f} nats."
    )
    return f"{table(['', 'FP32', '8 bits', 'speed-up'], cells)}\n\n{about}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/smollm2"))
    parser.add_argument("--window", type=int, default=512, help="tokens of text read together")
    parser.add_argument("--num-windows", type=int, default=32)
    parser.add_argument("--slots", type=int, nargs="*", default=[256, 2048, 4096], help="of prompts for first tokens")
    parser.add_argument("--callers", type=int, nargs="*", default=[1, 8, 16])
    parser.add_argument("--num-tokens", type=int, default=48, help="of every answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    num_threads = compute_alone()
    settings = {way: TorchSettings(quantization=way, max_whole_slots=max([1, *options.slots])) for way in WAYS}
    window = max([SHORT_PROMPT, *options.slots]) + SPARE_SLOTS
    engines = {way: open_engine(options.checkpoint, settings[way], window, num_threads) for way in WAYS}
    for engine in engines.values():
        # All answers are to be equally long.
        engine.eos_ids = set()
    report = {
        **describe_run("perf.int8"),
        "text": measure_text(options.checkpoint, options.window, options.num_windows),
        "first_tokens": [measure_first_tokens(engines, slots, options.rounds) for slots in options.slots],
        "decoding": [
            measure_decoding(engines, callers, options.num_tokens, options.rounds) for callers in options.callers
        ],
    }
    emit(report, markdown, options.output)


if __name__ == "__main__":
    main()
