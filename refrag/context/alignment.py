"""Aligns what the encoder reads with the decoder's tokens, so that ordered pooling knows the place of each state.

    decoder tokens     Ġthe   Ġquick  est       the chunk's places 0, 1, 2
    encoder tokens  [CLS] the quickest [SEP]
    mask              1    2     3       1      UNPLACED or FIRST_PLACE + place; padding is 0

An encoder token belongs to the decoder token in which its first character stands. So one that spans several decoder
tokens belongs to the first of them, and the others have no state of their own.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from refrag.context.tokenizer import TextTokenizer

# C chunks, K decoder tokens per chunk, L encoder tokens of the longest chunk

UNPLACED, FIRST_PLACE = 1, 2
Offsets = Sequence[tuple[int, int]]


class Aligner:
    """Finds places in the text that the decoder's tokenizer makes of a chunk's tokens."""

    def __init__(self, decoder_tokenizer: TextTokenizer) -> None:
        self.decoder_tokenizer = decoder_tokenizer
        self.num_characters = count_characters(decoder_tokenizer)

    def places(self, chunks: Sequence[Sequence[int]], texts: Sequence[str], offsets: Sequence[Offsets]) -> np.ndarray:
        """Return the mask's values for each encoder token.  -> INT64 (C, L)

        texts: what the decoder's tokenizer makes of the chunks. offsets: first character of each encoder token in them,
        and the one behind its last; equal for special tokens, which have none.
        """
        mask = np.zeros((len(chunks), max(map(len, offsets), default=0)), np.int64)
        for row, token_ids, text, spans in zip(mask, chunks, texts, offsets, strict=True):
            ends = self._ends(list(token_ids), len(text))
            starts, stops = np.array(spans).reshape(-1, 2).T
            places = np.minimum(np.searchsorted(ends, starts, side="right"), len(ends) - 1)
            row[: len(spans)] = np.where(stops > starts, FIRST_PLACE + places, UNPLACED)
        return mask

    def _ends(self, token_ids: list[int], num_characters: int) -> np.ndarray:
        """Return where each token ends in the chunk's text.  (K,)"""
        ends: np.ndarray = self.num_characters[token_ids].cumsum()
        if not len(ends) or ends[-1] == num_characters:
            return ends
        # Tokens share a character, or the text has lost the space in front of its first word: this way is exact, and
        # takes several times as long.
        prefixes = self.decoder_tokenizer.decode([token_ids[: count + 1] for count in range(len(token_ids))])
        exact: np.ndarray = np.maximum.accumulate([len(prefix) for prefix in prefixes])
        return exact


def own_places(is_token: np.ndarray) -> np.ndarray:
    """Return the mask of an encoder that reads the decoder's own tokens.  BOOL (C, K) -> INT64 (C, K)"""
    return np.where(is_token, FIRST_PLACE + np.arange(is_token.shape[1]), 0)


# A table takes a third of a second for a large vocabulary, and chunkers are made for each batch of training.
@lru_cache(maxsize=4)
def count_characters(tokenizer: TextTokenizer) -> np.ndarray:
    """Return how many characters each token adds to a text, if it is no part of a character.  INT64 (vocabulary,)"""
    anchor = tokenizer.encode(["a"])[0][-1]
    texts = tokenizer.decode([[anchor, token_id] for token_id in range(tokenizer.size)])
    # Behind another token, because some tokenizers drop the space in front of a text's first one.
    return np.array([len(text) for text in texts]) - len(tokenizer.decode([[anchor]])[0])
