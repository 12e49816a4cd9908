"""Anonymous memory in KiB before and after 1,000 requests of mixed length; run by test_engine_core.py."""

import gc
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torch
from engine_helpers import make_decoder, make_engine, make_prompt, make_request
from tiny import make_tiny_checkpoint

from refrag.engine.generation import Generation
from refrag.engine.request import EngineRequest
from refrag.request import SamplingParams


def anonymous_kib() -> int:
    """Return what the process holds itself: pages of files come and go with the machine's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def answer(engine, count: int, rng: random.Random) -> None:
    """Requests of 1 to 200 slots and 1 to 8 tokens, a few more waiting than have a place."""
    for _ in range(count // 20):
        for _ in range(20):
            sampling = SamplingParams(max_tokens=rng.randint(1, 8), temperature=1.0, seed=rng.getrandbits(32))
            engine.add(make_request(make_prompt(rng.randint(1, 200), rng.getrandbits(16)), sampling))
        while engine.has_work:
            engine.step()


def main() -> None:
    torch.set_num_threads(1)
    rng = random.Random(0)
    engine = make_engine(make_decoder("llama"), make_tiny_checkpoint().decoder_tokenizer, max_active=16)
    answer(engine, 100, rng)
    before = anonymous_kib()
    answer(engine, 1000, rng)
    gc.collect()
    left = [thing for thing in gc.get_objects() if isinstance(thing, (EngineRequest, Generation))]
    assert not left, f"{len(left)} requests are still held"
    print(before, anonymous_kib())


if __name__ == "__main__":
    main()
