"""Chooses a request's chunks by the decoder's own attention, before its answer begins. See `refrag.policies.attention`.

    1  ^ A B C D n n n          all chunks compressed, then a question that asks nothing: where its rows look
    2  ^ A B C D q q q g        the same slots, then the question, and tokens generated after it, which nobody sees
    3  ^ A B c c c c D q q q    what was chosen in full: the prompt that is answered

Each is a prompt like any other to the scheduler. What it has in common with the one before is not computed again: all
chunks in the second, what stands before the first expanded chunk in the third.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refrag.context.chunking import NO_TOKEN
from refrag.decoders.base import Choice, ChunksToSense, MixedPrompt
from refrag.engine.prefix import block_keys
from refrag.engine.request import EngineRequest
from refrag.engine.watching import WeightSums
from refrag.errors import InvalidRequest
from refrag.model.attention_heads import AttentionHeads
from refrag.policies.base import Candidates, ChunkAttention
from refrag.policies.select import select_chunks

# N heads, C chunks


@dataclass(frozen=True)
class Senses:
    """Heads and null question that an engine senses with.

    null_ids: a question that asks nothing, inside the prompt's template.
    """

    heads: AttentionHeads
    null_ids: Sequence[int]

    def max_slots(self, request: EngineRequest, window: int) -> int:
        """Return the slots that sensing needs at most, besides those of the answer, if `check_window` lets it pass."""
        num_tokens = 0 if request.to_sense is None else request.to_sense.num_tokens
        return min(window, len(request.prompt.input_ids) + max(num_tokens, len(self.null_ids)))

    def check_window(self, prompt: MixedPrompt, vocab_size: int, window: int) -> None:
        """Raise InvalidRequest if the window has no room for the null question in the place of the request's own."""
        needed = question_start(prompt, vocab_size) + len(self.null_ids)
        if needed > window:
            raise InvalidRequest(
                f"the policy that reads attention needs {needed} slots to ask a question of its own, the decoder's "
                f"window is {window}; send fewer passages, or name another policy"
            )


class Reading:
    """A prompt that is computed to see where its last slots look, and what has been seen so far."""

    def __init__(self, prompt: MixedPrompt, question_start: int, chunk_slots: Tensor, heads: AttentionHeads) -> None:
        self.prompt = prompt
        first_row = max(question_start, len(prompt.input_ids) - heads.scoring.query_slots)
        self.watch = WeightSums(heads.by_layer, chunk_slots, first_row)
        self.sums = {layer: torch.zeros(len(numbers), len(chunk_slots)) for layer, numbers in heads.by_layer.items()}
        self.num_rows = 0

    def take(self, stop: int) -> None:
        """Add what the last pass saw, which computed the slots before `stop`; a slot computed again counts once."""
        if stop <= self.watch.first_row:
            return
        for layer, seen in self.watch.seen.items():
            self.sums[layer] += seen.cpu()
        self.num_rows += stop - self.watch.first_row
        self.watch.first_row = stop
        self.watch.seen.clear()

    def weights(self) -> np.ndarray:
        """Return each head's mean weight on each chunk.  (N, C)"""
        return torch.cat(list(self.sums.values())).numpy() / max(1, self.num_rows)


class Sensing:
    """One request on its way to the choice of its chunks."""

    def __init__(
        self, prompt: MixedPrompt, chunks: ChunksToSense, senses: Senses, vocab_size: int, window: int
    ) -> None:
        self.chunks, self.senses, self.vocab_size = chunks, senses, vocab_size
        # The window may end before all tokens are generated that were asked for.
        self.num_tokens = min(chunks.num_tokens, window - len(prompt.input_ids))
        chunk_slots = _chunk_slots(prompt, vocab_size)  # (C,)
        self.question_start = question_start(prompt, vocab_size)
        context = prompt.input_ids[: self.question_start]
        null_ids = torch.cat([context, torch.tensor(senses.null_ids, dtype=context.dtype)])
        null = MixedPrompt(null_ids, prompt.chunk_embeddings)
        self.null, self.question = (
            Reading(each, self.question_start, chunk_slots, senses.heads) for each in (null, prompt)
        )
        self.current = self.null
        self.token_ids: list[int] = []

    def keys(self, block_size: int) -> list[bytes]:
        """Return the keys of the blocks that may be reused: the rows of the question must be computed to be seen."""
        return block_keys(self.question.prompt, block_size, self.vocab_size)[: self.question_start // block_size]

    def reads_on(self, token_id: int, eos_ids: Collection[int]) -> bool:
        """Return whether to compute this token next, which follows the current prompt; if so it has been added."""
        if self.current is self.null or len(self.token_ids) >= self.num_tokens or token_id in eos_ids:
            return False
        self.token_ids.append(token_id)
        return True

    def choose(self) -> Choice:
        """Return the choice, once both readings are complete."""
        chunks, heads = self.chunks, self.senses.heads
        attention = ChunkAttention(
            self.question.weights(), self.null.weights(), np.array(heads.weights), chunks.similarities, heads.scoring
        )
        no_vectors = torch.zeros(0, 0)
        candidates = Candidates(chunks.passages, no_vectors, no_vectors, attention=attention)
        selection = select_chunks(chunks.policy, candidates, chunks.budget, chunks.fallback)
        expanded = list(selection.numbers)
        prompt = expand_in_place(self.question.prompt, chunks.token_ids, expanded, self.vocab_size)
        return Choice(expanded, selection.weights, prompt)


def question_start(prompt: MixedPrompt, vocab_size: int) -> int:
    """Return the slot behind the last chunk of a prompt that is all compressed."""
    return int(_chunk_slots(prompt, vocab_size)[-1]) + 1


def _chunk_slots(prompt: MixedPrompt, vocab_size: int) -> Tensor:
    return torch.nonzero(prompt.input_ids >= vocab_size)[:, 0]


def expand_in_place(
    prompt: MixedPrompt, token_ids: np.ndarray, expanded: Sequence[int], vocab_size: int
) -> MixedPrompt:
    """Return the prompt with these rows' tokens in place of their slots, and the other rows numbered anew.

    token_ids (C, K): of each row's chunk, NO_TOKEN after the end of a short one.
    """
    kept = np.setdiff1d(np.arange(len(token_ids)), expanded)
    new_ids = np.full(len(token_ids), -1)
    new_ids[kept] = vocab_size + np.arange(len(kept))
    input_ids: list[int] = []
    for slot_id in prompt.input_ids.tolist():
        row = slot_id - vocab_size
        if row < 0:
            input_ids.append(slot_id)
        elif new_ids[row] >= 0:
            input_ids.append(int(new_ids[row]))
        else:
            input_ids += token_ids[row][token_ids[row] != NO_TOKEN].tolist()
    return MixedPrompt(torch.tensor(input_ids), prompt.chunk_embeddings[torch.from_numpy(kept)])
