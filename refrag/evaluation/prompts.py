"""The cases as a condition shows them to the decoder."""

from dataclasses import replace

import torch
from torch import Tensor

from refrag.evaluation.cases import Case
from refrag.evaluation.conditions import Condition
from refrag.evaluation.encoding import CaseSet
from refrag.evaluation.reading import EmbeddedExample
from refrag.evaluation.selection import choose_chunks
from refrag.policies.budget import expansion_budget
from refrag.teacher_forcing.batches import MixedExample, Segment

# C chunks, D decoder width


def build_prompts(cases: CaseSet, condition: Condition) -> list[EmbeddedExample]:
    """One for each case, with the target as its last segment."""
    shown = _show_compressed(cases, condition) if condition.form == "compressed" else _show_plain(cases, condition)
    return [
        replace(one, example=replace(one.example, segments=_segments(case)))
        for one, case in zip(shown, cases.cases, strict=True)
    ]


def truncated_length(case: Case, condition: Condition) -> int:
    """Slots of the context if it were compressed at the condition's chunk size and fraction."""
    num_chunks = case.num_chunks(condition.chunk_size)
    return num_chunks + expansion_budget(condition.expand_fraction, num_chunks) * (condition.chunk_size - 1)


def _show_plain(cases: CaseSet, condition: Condition) -> list[EmbeddedExample]:
    shown = []
    for case in cases.cases:
        length = {"none": 0, "full": case.num_tokens}.get(condition.form, truncated_length(case, condition))
        shown.append(cases.plain_example(case.token_ids[max(0, case.num_tokens - length) :]))
    return shown


def _show_compressed(cases: CaseSet, condition: Condition) -> list[EmbeddedExample]:
    expanded = choose_chunks(cases, condition)
    return [
        EmbeddedExample(MixedExample(one.chunks, picks, []), _embeddings(cases, condition, number))
        for number, (one, picks) in enumerate(zip(cases.encoded(condition.chunk_size), expanded, strict=True))
    ]


def _embeddings(cases: CaseSet, condition: Condition, number: int) -> Tensor:
    """True ones, or what the control puts in their place.  -> (C, D)"""
    encoded = cases.encoded(condition.chunk_size)
    own = encoded[number].embeddings
    if condition.embeddings == "zeroed":
        return torch.zeros_like(own)
    if condition.embeddings == "shuffled":
        # Half of all cases away, so that it is of another world, where the answer cannot stand by chance.
        other = encoded[(number + max(1, len(encoded) // 2)) % len(encoded)].embeddings
        return other[torch.arange(len(own)) % len(other)]
    return own


def _segments(case: Case) -> list[Segment]:
    return [Segment(case.prompt_ids, 0.0), Segment(case.target_ids, 1.0, is_answer=True)]
