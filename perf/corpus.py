"""Draws passages to measure with: words of the client's examples in random order, so that no two chunks are alike.

The cost of a chunk does not depend on what it says, but it does depend on whether it was seen before.
"""

import random
from pathlib import Path

from refrag.config import RefragConfig
from refrag.context.chunking import Chunker
from refrag.context.deployed import DeployedFrame, DeployedTokenizers
from refrag_client.passages import read_passages

EXAMPLES = Path(__file__).resolve().parents[1] / "client" / "examples" / "passages.jsonl"
PASSAGE_WORDS = 50
QUESTION = "Who keeps the lighthouse?"


class Corpus:
    """Draws passages that are new each time, and counts their tokens as the repository's checkpoint does."""

    def __init__(self, repository: Path, seed: int = 0) -> None:
        deployed = repository / "preprocessing" / "1" / "checkpoint"
        self.config = RefragConfig.load(deployed)
        frame, tokenizers = DeployedFrame.load(deployed).frame, DeployedTokenizers.load(deployed)
        self.chunker = Chunker(self.config, frame, tokenizers.decoder, tokenizers.encoder)
        self.words = sorted({word for passage in read_passages(str(EXAMPLES)) for word in passage.split()})
        self.rng = random.Random(seed)

    def draw_passage(self, num_words: int = PASSAGE_WORDS) -> str:
        return " ".join(self.rng.choices(self.words, k=num_words))

    def draw(self, num_tokens: int) -> list[str]:
        """Return passages of about `num_tokens` context tokens in all; the last one is shortened to end near there."""
        passages: list[str] = []
        missing = num_tokens
        while missing > 0:
            passage = self.draw_passage()
            count = self.count_tokens(passage)
            if count > missing:
                num_words = max(1, PASSAGE_WORDS * missing // count)
                passage = " ".join(passage.split()[:num_words])
                passages.append(passage)
                break
            passages.append(passage)
            missing -= count
        return passages

    def count_tokens(self, passage: str) -> int:
        return len(self.chunker.passage_ids(passage))
