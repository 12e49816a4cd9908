"""Decides who computes what in the next step. Sees lengths and blocks, never a token, an embedding or a clock.

A sequence's slots are its prompt's, then one for each generated token. The first `num_computed` are in the KV cache.
A sequence with one slot left to compute is decoding, a sequence with more is prefilling:

    slots          p p p p p p p p p p g g
    computed       ■ ■ ■ ■ ■ ■ . . . . . .      prefilling, after a preemption: generated tokens are recomputed too
    computed       ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ .      decoding
"""

from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from refrag.engine.block_pool import BlockPool, Run, slot_runs

# Slots that a sequence in the background gets in one step, for which a request that comes meanwhile has to wait.
BACKGROUND_STEP_SLOTS = 64
# A prompt that was passed over so many times in a row goes first, or short ones could starve it.
MAX_SKIPPED = 4


@dataclass(eq=False)
class Sequence:
    """The lengths and blocks of one request.

    number: rises in order of arrival. priority: lower goes first.
    is_background: computed only while no other sequence is there, and after all of them whatever the priority.
    max_slots: the most slots it can need. From admission on it holds blocks for all of them, until it ends or is
        preempted, so that it never waits half-way.
    keys: hashes of what its prompt's full blocks hold, for reuse. runs: where its blocks lie, in slots of the pool.
    num_published: full blocks that others can find. num_skipped: steps in a row that passed its prompt over.
    """

    number: int
    num_slots: int
    max_slots: int
    keys: List[bytes] = ()
    priority: int = 0
    is_background: bool = False
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    num_published: int = 0
    num_skipped: int = 0

    @property
    def num_left(self) -> int:
        return self.num_slots - self.num_computed

    @property
    def urgency(self) -> tuple[bool, int]:
        return self.is_background, self.priority

    @property
    def rank(self) -> tuple[tuple[bool, int], int]:
        return self.urgency, self.number


S = TypeVar("S", bound=Sequence)


@dataclass(frozen=True)
class Part(Generic[S]):
    """Slots [start, stop) of a sequence, to be computed in one step."""

    sequence: S
    start: int
    stop: int

    @property
    def completes(self) -> bool:
        """Return whether the next token can be chosen after this part."""
        return self.stop == self.sequence.num_slots


class Scheduler(Generic[S]):
    """Continuous batching: every decoding sequence advances in each step, and prefills share the slots that are left.

    max_active: sequences that may hold blocks. max_step_slots: slots of one step.
    max_whole_slots: longest prompt that is computed in one step while no other sequence is active.
    """

    def __init__(self, pool: BlockPool, max_active: int, max_step_slots: int, max_whole_slots: int = 0) -> None:
        self.pool, self.max_active = pool, max_active
        self.max_step_slots, self.max_whole_slots = max_step_slots, max_whole_slots
        self.waiting: list[S] = []
        self.active: list[S] = []
        self.num_preempted = 0
        self.num_reused_slots = 0

    def add(self, sequence: S) -> None:
        """Queue the sequence; the caller has checked that the pool could hold it alone."""
        assert self.pool.blocks_for(sequence.max_slots) <= self.pool.num_blocks
        self.waiting.append(sequence)

    def remove(self, sequence: S) -> None:
        """Forget the sequence, whether it waits or is active."""
        if sequence in self.active:
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Part[S]]:
        """Admit the sequences that there is room for, and return the parts of the next step."""
        self._admit()
        due = self._due()
        decoding = [sequence for sequence in due if sequence.num_left == 1]
        prefilling = [sequence for sequence in due if sequence.num_left > 1]
        parts = [Part(one, one.num_computed, one.num_slots) for one in decoding]
        return parts + self._share_out(prefilling, max(1, self._prefill_slots(prefilling) - len(parts)))

    def restart(self, sequence: S) -> None:
        """Let an active sequence be computed anew from the first slot whose content has changed.

        Its `num_slots` and `keys` have been set to those of the new prompt. What this begins with stays computed as far
        as it fills published blocks; none of these is written to again. Blocks that others share stay theirs: where
        what is left does not suffice, the sequence waits for its blocks at its old rank.
        """
        self._release(sequence)
        shared = self._find_prefix(sequence)
        if self.pool.fits(shared, self.pool.blocks_for(sequence.max_slots)):
            self._give_blocks(sequence, shared)
            self.active.append(sequence)
        else:
            self.waiting.append(sequence)

    def complete(self, part: Part[S]) -> None:
        """Record the part as computed, and publish full blocks of the prompt, so that other sequences can find them."""
        one = part.sequence
        one.num_computed = part.stop
        num_full = min(len(one.keys), one.num_computed // self.pool.block_size)
        for index in range(one.num_published, num_full):
            self.pool.publish(one.blocks[index], one.keys[index])
        one.num_published = max(one.num_published, num_full)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is accounted for and every sequence fits its blocks."""
        self.pool.check_integrity(sequence.blocks for sequence in self.active)
        assert not any(sequence.blocks or sequence.num_computed for sequence in self.waiting), (
            "a waiting sequence has blocks"
        )
        for one in self.active:
            capacity = len(one.blocks) * self.pool.block_size
            assert one.num_computed < one.num_slots <= one.max_slots <= capacity, (
                f"computed {one.num_computed} < slots {one.num_slots} <= {one.max_slots} <= capacity {capacity}"
            )

    def _due(self) -> list[S]:
        """Return the active sequences; of the background only while no other is there."""
        others = [one for one in self.active if not one.is_background]
        has_others = others or any(not one.is_background for one in self.waiting)
        return others if has_others else list(self.active)

    def _admit(self) -> None:
        """Admit in order of rank. While the first in rank has no room, no other is admitted, however small it is."""
        while self.waiting:
            first = min(self.waiting, key=lambda sequence: sequence.rank)
            if not self._place(first):
                break
            self.waiting.remove(first)

    def _place(self, sequence: S) -> bool:
        """Give the sequence its blocks, if need be by preempting less urgent ones; return False if there is no room."""
        shared, needed = self._find_prefix(sequence), self.pool.blocks_for(sequence.max_slots)
        if len(self.active) >= self.max_active or not self.pool.fits(shared, needed):
            victims = self._choose_victims(sequence, shared, needed)
            if not victims:
                return False
            for victim in victims:
                self._preempt(victim)
        self._give_blocks(sequence, shared)
        self.active.append(sequence)
        return True

    def _give_blocks(self, sequence: S, shared: List[int]) -> None:
        """Give the sequence the blocks that hold its beginning already, and others for the rest."""
        sequence.blocks = self.pool.allocate(shared, self.pool.blocks_for(sequence.max_slots))
        sequence.runs = slot_runs(sequence.blocks, self.pool.block_size)
        sequence.num_published = len(shared)
        sequence.num_computed = len(shared) * self.pool.block_size
        self.num_reused_slots += sequence.num_computed

    def _find_prefix(self, sequence: S) -> list[int]:
        """Return published blocks with the prompt's beginning; its last slot is always computed, for the logits."""
        num_usable = (sequence.num_slots - 1) // self.pool.block_size
        return self.pool.find(sequence.keys[:num_usable])

    def _choose_victims(self, sequence: S, shared: List[int], needed: int) -> list[S]:
        """Return the less urgent sequences to preempt; none if even all of them would not make room.

        From the highest rank down, each is kept if there is still room beside it.
        """
        kept = [one for one in self.active if one.urgency <= sequence.urgency]
        below = sorted((one for one in self.active if one.urgency > sequence.urgency), key=lambda one: one.rank)
        if not below or not self._has_room_beside(kept, shared, needed):
            return []
        victims = []
        for one in below:
            if self._has_room_beside([*kept, one], shared, needed):
                kept.append(one)
            else:
                victims.append(one)
        return victims

    def _has_room_beside(self, kept: List[S], shared: List[int], needed: int) -> bool:
        """Return whether there would be room if only `kept` were active."""
        held = {block for one in kept for block in one.blocks}
        num_fresh = needed - len(held.intersection(shared))
        return len(kept) < self.max_active and num_fresh <= self.pool.num_blocks - len(held)

    def _preempt(self, sequence: S) -> None:
        """Put the sequence back into the queue at its old rank.

        Its tokens stay. Its slots are computed again, except for published blocks that are found again.
        """
        self._release(sequence)
        self.waiting.append(sequence)
        self.num_preempted += 1

    def _release(self, sequence: S) -> None:
        self.active.remove(sequence)
        self.pool.free(sequence.blocks)
        sequence.blocks, sequence.runs, sequence.num_computed, sequence.num_published = [], [], 0, 0

    def _prefill_slots(self, prefilling: List[S]) -> int:
        """Return the limit of slots for this step.

        Cutting a prompt costs time, which pays only if it lets something else go on: an answer, or a shorter prompt.
        """
        if prefilling and prefilling[0].is_background:
            return min(self.max_step_slots, BACKGROUND_STEP_SLOTS)
        is_alone = len(prefilling) == len(self.active) == 1
        if is_alone and prefilling[0].num_slots <= self.max_whole_slots:
            return max(self.max_step_slots, self.max_whole_slots)
        return self.max_step_slots

    def _share_out(self, prefilling: List[S], budget: int) -> list[Part[S]]:
        """Return the parts of prompts that `budget` slots allow.

        Whole prompts go first, the shortest before others, so that none waits for a long one. If not even the first
        fits, it gets a part.
        """
        parts: list[Part[S]] = []
        for one in sorted(prefilling, key=_prefill_order):
            if parts and one.num_left > budget:
                one.num_skipped += 1
                continue
            count = min(one.num_left, budget)
            parts.append(Part(one, one.num_computed, one.num_computed + count))
            budget -= count
            one.num_skipped = 0
        return parts


def _prefill_order(sequence: Sequence) -> tuple[int, bool, int, int]:
    """Return the sort key: by priority, then overdue sequences, most often passed over first, then the shortest."""
    is_overdue = sequence.num_skipped >= MAX_SKIPPED
    urgency = -sequence.num_skipped if is_overdue else sequence.num_left
    return sequence.priority, not is_overdue, urgency, sequence.number
