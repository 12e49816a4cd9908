"""The contract between what serves collections and the engine that keeps them.

A collection is a named set of passages with ids. Any number of processes may search it, one may change it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from refrag.retrieval.conditions import Condition

# E width of a passage vector

# The words by which the refusal of a collection of another passage encoder is known, also across the wire.
OTHER_ENCODER = "was indexed with"
Mode = Literal["hybrid", "text", "dense"]
Value = str | int | float | bool


@dataclass(frozen=True)
class Document:
    """A passage to keep. text: as the decoder reads it, under its title if it has one.

    metadata: what filters may ask for, and what is handed back.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """A question to a collection. vector: FP32 (E,) of length 1; None where the deployment has no passage encoder."""

    text: str
    vector: np.ndarray | None
    num_passages: int
    mode: Mode
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Hit:
    """A passage that was found. score: how well it fits, more is better; of one mode alone comparable."""

    id: str
    text: str
    title: str
    metadata: Mapping[str, Value]
    score: float


@dataclass(frozen=True)
class Written:
    """Counts of one upsert: the passages that were new or changed, and those that were there as they are."""

    num_written: int
    num_unchanged: int


@dataclass(frozen=True)
class CollectionInfo:
    """A summary of a collection. encoder: fingerprint of the passage encoder, "" if it has no passage vectors."""

    name: str
    num_passages: int
    encoder: str
    num_bytes: int | None


@dataclass(frozen=True)
class PassageEncoderIdentity:
    """The encoder whose vectors a deployment searches: its fingerprint, and the numbers in a vector."""

    fingerprint: str
    width: int


class CollectionReader(Protocol):
    """Finds passages. Raises InvalidRequest for an unknown collection, and for one of another passage encoder."""

    def names(self) -> list[str]: ...

    def describe(self, name: str) -> CollectionInfo: ...

    def search(self, name: str, query: Query) -> list[Hit]:
        """Return up to `num_passages` hits, best first."""
        ...


class CollectionWriter(Protocol):
    """Changes collections. A change is whole and lasting once the call returns.

    Raises InvalidRequest as a reader does, and Overloaded where another process is the one that writes.
    """

    def find_changed(self, name: str, documents: Sequence[Document]) -> list[Document]:
        """Return those of the documents that the collection lacks or has in another form."""
        ...

    def upsert(self, name: str, documents: Sequence[Document], vectors: np.ndarray | None) -> None:
        """Add the documents, in place of those with the same ids; make the collection if there is none.

        vectors: FP32 (N, E) of length 1, or None.
        """
        ...

    def delete(self, name: str, ids: Sequence[str]) -> int:
        """Remove the passages with these ids, and return how many there were."""
        ...

    def drop(self, name: str) -> None: ...

    def optimize(self, name: str) -> None:
        """Bring the indexes up to date, and free what old versions take."""
        ...
