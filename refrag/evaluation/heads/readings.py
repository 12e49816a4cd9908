"""Reads where every head of a decoder looks: rows of questions over compressed passages whose evidence is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from refrag.config import LEARNED_POLICY
from refrag.data.questions.arrange import arrange
from refrag.data.questions.row import QuestionRow
from refrag.data.questions.turns import as_turns
from refrag.data.spans import Spans
from refrag.evaluation.questions.choices import find_answer_chunks
from refrag.model.attention_heads import AttentionHeads, Scoring
from refrag.model.checkpoint import Checkpoint, load_checkpoint
from refrag.pipeline import Pipeline
from refrag.policies.attention import deviations
from refrag.policies.budget import expansion_budget
from refrag.request import ExpansionOptions, Request

# N heads of all layers, C chunks

# Shares of the chunks at which policies are compared.
SHARES = (0.05, 0.1, 0.2)
# Of a score, in deviations: FP16 has no more than 65504.
MOST_KEPT = 1e4
OTHER_POLICIES = ("similarity", "neighbourhood", LEARNED_POLICY, "random")


@dataclass(frozen=True)
class Reading:
    """One row.

    scores (N, C): each head's, FP16. passages, similarities (C,): as `ChunkAttention` has them.
    evidence: numbers of the chunks that hold the answer, in passages with the evidence.
    picks: what other policies select, by policy and share of the chunks; empty for rows that only teach.
    """

    scores: np.ndarray
    passages: np.ndarray
    similarities: np.ndarray
    evidence: list[int]
    picks: dict[tuple[str, float], list[int]] = field(default_factory=dict)

    def budget(self, share: float) -> int:
        return expansion_budget(share, len(self.passages))


class Reader:
    """Reads rows with one checkpoint, all heads of its decoder at once."""

    def __init__(self, folder: Path, num_passages: int, seed: int) -> None:
        # Heads that an earlier search has left may be of other weights.
        self.checkpoint = replace(load_checkpoint(folder), heads=None)
        self.num_passages, self.seed = num_passages, seed
        self.heads = all_heads(self.checkpoint)
        # The learned policy spends its budget, as the others do.
        config = replace(self.checkpoint.config, policy_confidence=1.0)
        self.pipeline = Pipeline(replace(self.checkpoint, heads=self.heads, config=config))
        self.spans = Spans(self.pipeline.chunker)

    def read(self, rows: Sequence[QuestionRow], is_compared: bool) -> Iterator[Reading]:
        """Yield a reading of each row that has evidence and a choice of chunks; others teach nothing.

        is_compared: whether other policies are to select too.
        """
        for row in tqdm(rows, desc="rows", unit="row", disable=None):
            reading = self._read(arrange(row, self.num_passages, self.seed, keep_gold=True), is_compared)
            if reading is not None:
                yield reading

    def _read(self, row: QuestionRow, is_compared: bool) -> Reading | None:
        request = Request(row.question, [passage.content for passage in row.passages], history=as_turns(row))
        context = self.pipeline.prepare(request, max_tokens=1)
        passages = context.chunks.passages
        gold = range(len(row.passages)) if row.gold is None else row.gold
        evidence = [number for number in find_answer_chunks(row, self.spans, passages) if passages[number] in gold]
        if not evidence or expansion_budget(min(SHARES), len(passages)) == 0:
            return None
        vectors, question_vectors = self.pipeline.encode(context)
        attention = self.pipeline.read_attention(context, vectors, question_vectors)
        scores = deviations(attention.question, attention.null).clip(-MOST_KEPT, MOST_KEPT)
        reading = Reading(scores.astype(np.float16), passages, attention.similarities, evidence)
        for policy in OTHER_POLICIES if is_compared else ():
            if policy != LEARNED_POLICY or self.checkpoint.policy is not None:
                for share in SHARES:
                    options = ExpansionOptions(share, policy, self.seed)
                    selection = self.pipeline.select(options, context, vectors, question_vectors)
                    reading.picks[policy, share] = list(selection.numbers)
        return reading


def all_heads(checkpoint: Checkpoint) -> AttentionHeads:
    """Return every head of every layer."""
    config = checkpoint.decoder.config
    heads = tuple(
        (layer, head) for layer in range(config.num_hidden_layers) for head in range(config.num_attention_heads)
    )
    return AttentionHeads(heads, (1.0,) * len(heads), Scoring())
