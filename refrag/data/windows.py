"""Cuts documents into windows of tokens: an endless stream for training, and a fixed set for measuring perplexity.

Wherever a document is long enough, a window is a run of its tokens. The rest of each document, shorter than a window,
is carried on, and such rests are joined, with EOS in between, to windows of their own. So nothing is padded, and no
document that fills a window by itself begins in the middle of one.

    document A  ──────── window ────────│──────── window ────────│─ rest ─┐
    document B  ──────── window ────────│── rest ──┐                      │
                                          rest of A, EOS, rest of B, EOS, … ──► window
"""

import random
from typing import Any

from transformers import PreTrainedTokenizerBase

from refrag.data.documents import DocumentStream, open_documents
from refrag.data.sources import TextSource
from refrag.errors import TrainingError

# So many windows are read for each that is asked for: the seed has a choice, and a large corpus is not read to its end.
CHOICE = 4


class WindowStream:
    """Windows of `num_tokens` tokens without end; a restored stream goes on at the very next token.

    Raises TrainingError if the tokenizer has no EOS token.
    """

    def __init__(self, documents: DocumentStream, tokenizer: PreTrainedTokenizerBase, num_tokens: int):
        self._documents = documents
        self._tokenizer = tokenizer
        self._num_tokens = num_tokens
        self._eos_id = _eos_id(tokenizer)
        self._before_document = documents.state()
        self._document_ids: list[int] = []
        self._offset = 0
        self._carried_ids: list[int] = []

    def draw(self, num_tokens: int | None = None) -> list[int]:
        """Return the next window's token ids: `num_tokens`, at least 1, or by default as many as the stream says."""
        length = self._num_tokens if num_tokens is None else num_tokens
        if length < 1:
            raise TrainingError(f"a window of {length} tokens was asked for; ask for at least 1")
        while True:
            if len(self._document_ids) - self._offset >= length:
                self._offset += length
                return self._document_ids[self._offset - length : self._offset]
            if len(self._carried_ids) >= length:
                window, self._carried_ids = _take(self._carried_ids, length, self._eos_id)
                return window
            self._carried_ids = _join(self._carried_ids, self._document_ids[self._offset :], self._eos_id)
            self._open_document()

    def state(self) -> dict[str, Any]:
        return {"documents": self._before_document, "offset": self._offset, "carried_ids": list(self._carried_ids)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on at `state`; raise TrainingError if the document that it stopped in has become shorter."""
        self._documents.restore(state["documents"])
        self._open_document()
        if state["offset"] > len(self._document_ids):
            raise TrainingError(
                f"training stopped at token {state['offset']} of a document that now has {len(self._document_ids)}; "
                "go on with the documents and the tokenizer it was started with"
            )
        self._offset = state["offset"]
        self._carried_ids = list(state["carried_ids"])

    def _open_document(self) -> None:
        self._before_document = self._documents.state()
        self._document_ids = token_ids(self._documents.draw(), self._tokenizer)
        self._offset = 0


def heldout_windows(
    source: TextSource, tokenizer: PreTrainedTokenizerBase, num_tokens: int, count: int, seed: int
) -> list[list[int]]:
    """Return the token ids of `count` windows of held-out documents, no token in two of them.

    Windows are read until there are several times as many, and `count` of them are drawn. Each lies within one
    document, unless there are too few of this kind; then the others are joined from the rests of documents. Raise
    TrainingError if there are fewer than `count` in all.
    """
    rng = random.Random(seed)
    within, joined = _cut_heldout(source, tokenizer, num_tokens, CHOICE * count)
    num_within = min(count, len(within))
    if num_within + len(joined) < count:
        raise TrainingError(
            f"{count} held-out windows of {num_tokens} tokens were asked for and the {source.kind} source has "
            f"{len(within) + len(joined)}; ask for fewer or shorter ones, or add documents"
        )
    return rng.sample(within, num_within) + rng.sample(joined, count - num_within)


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of the text alone: no special token is added, and what spells one stays text."""
    # A document may be longer than the decoder's window; verbose=True would warn of it.
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[int] = encoded.input_ids
    return ids


def _cut_heldout(
    source: TextSource, tokenizer: PreTrainedTokenizerBase, num_tokens: int, enough: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return windows within one document and windows of joined rests, read until there are `enough` of either kind."""
    within: list[list[int]] = []
    joined: list[list[int]] = []
    carried: list[int] = []
    eos_id = _eos_id(tokenizer)
    for text in open_documents(source, "heldout").read():
        ids = token_ids(text, tokenizer)
        num_windows = len(ids) // num_tokens
        within += [ids[place * num_tokens : (place + 1) * num_tokens] for place in range(num_windows)]
        carried = _join(carried, ids[num_windows * num_tokens :], eos_id)
        if len(carried) >= num_tokens:
            window, carried = _take(carried, num_tokens, eos_id)
            joined.append(window)
        if max(len(within), len(joined)) >= enough:
            break
    return within, joined


def _join(left: list[int], right: list[int], eos_id: int) -> list[int]:
    return [*left, eos_id, *right] if left and right else left + right


def _take(ids: list[int], count: int, eos_id: int) -> tuple[list[int], list[int]]:
    """Return the first `count` ids and the others, without the EOS between two documents if they begin with it."""
    rest = ids[count:]
    return ids[:count], rest[1:] if rest[:1] == [eos_id] else rest


def _eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise TrainingError("the tokenizer has no EOS token to put between documents; set its eos_token")
    return int(tokenizer.eos_token_id)
