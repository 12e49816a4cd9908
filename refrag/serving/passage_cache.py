"""Passages whose chunks are remembered, so that a passage that is asked about again is not tokenised again."""

from cachetools import LRUCache

from refrag.chunking import Cut

# A number, its place in a tuple, its share of the tuple and of the text; and what is around a passage. Rounded up.
BYTES_PER_TOKEN, BYTES_PER_PASSAGE = 64, 512


class PassageCache(LRUCache[str, Cut]):
    """Gives up the least recently used beyond `limit_bytes`, and does not take what is larger than that by itself."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes, getsizeof=passage_bytes)

    def __setitem__(self, passage: str, cut: Cut) -> None:
        if passage_bytes(cut) <= self.maxsize:
            super().__setitem__(passage, cut)


def passage_bytes(cut: Cut) -> int:
    return BYTES_PER_PASSAGE + BYTES_PER_TOKEN * sum(map(len, cut))
