"""Opens a stage's text: windows of tokens from its sources, with a part of the documents for each process."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from refrag.data.documents import DocumentStream, MixedDocuments
from refrag.data.sources import TextSource
from refrag.data.windows import WindowStream


class EveryNth:
    """Every n-th document of a stream from number `first` on: those that one of n processes trains on."""

    def __init__(self, documents: DocumentStream, first: int, n: int) -> None:
        self._documents, self._n = documents, n
        self._skip(first)

    def draw(self) -> str:
        document = self._documents.draw()
        self._skip(self._n - 1)
        return document

    def state(self) -> dict[str, Any]:
        return self._documents.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._documents.restore(state)

    def _skip(self, count: int) -> None:
        for _ in range(count):
            self._documents.draw()


def open_windows(
    sources: Sequence[TextSource], tokenizer: PreTrainedTokenizerBase, process_index: int = 0, num_processes: int = 1
) -> WindowStream:
    """Return the windows of this process's training documents; each call of `draw` names the length of its window.

    Raise TrainingError if a source cannot be opened.
    """
    documents = EveryNth(MixedDocuments(sources, "train"), process_index, num_processes)
    return WindowStream(documents, tokenizer, num_tokens=1)
