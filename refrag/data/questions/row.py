"""Rows of a question set: a question, its accepted answers, and the passages retrieved for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourcePassage:
    """A passage as its source has it; the title is empty where there is none."""

    id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """Return what is served and searched: the title on a line of its own, then the text; neither if it is empty."""
        return "\n".join(part for part in (self.title, self.text) if part)


@dataclass(frozen=True)
class QuestionRow:
    """A question over passages.

    source: name of the set that the row comes from.
    answers: every accepted answer, the preferred one first; none if nothing answers, or if the source has none.
    answerable: false if the passages hold no answer, so that the decoder should say so; `answers` may then hold
        references for saying it.
    passages: the retrieved ones, best first, or in the source's own order.
    gold: positions of the passages that hold the evidence; None if unknown.
    history: the earlier turns as pairs of role and text; the roles are user and assistant in turn.
    extra: further fields of the source, such as `true_answer`.
    keeps_order: true if the passages are parts of one document, whose order must stay.
    num_found: of the passages, how many were found; those behind them hold evidence that was not. None if all were.
    """

    id: str
    source: str
    question: str
    answers: tuple[str, ...]
    answerable: bool
    passages: tuple[SourcePassage, ...]
    gold: tuple[int, ...] | None = None
    history: tuple[tuple[str, str], ...] = ()
    task: str = "open"
    extra: Mapping[str, Any] = field(default_factory=dict)
    keeps_order: bool = False
    num_found: int | None = None
