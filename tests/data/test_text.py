"""Several processes share the documents of a stage, and go on with their windows of text after a break."""

import json
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refrag.data.documents import MixedDocuments
from refrag.data.sources import TextSource
from refrag.data.text import EveryNth, open_windows
from refrag.data.windows import token_ids

SOURCES = [TextSource(kind="world"), TextSource(kind="stdlib", weight=0.5)]


class Numbers:
    """Documents that are their own numbers."""

    def __init__(self):
        self.position = 0

    def draw(self):
        self.position += 1
        return str(self.position - 1)

    def state(self):
        return {"position": self.position}

    def restore(self, state):
        self.position = state["position"]


def take(documents, num):
    return [documents.draw() for _ in range(num)]


@given(num_processes=st.integers(1, 5), num_drawn=st.integers(1, 20))
def test_the_processes_share_out_the_documents(num_processes, num_drawn):
    shares = [take(EveryNth(Numbers(), first, num_processes), num_drawn) for first in range(num_processes)]
    together = sorted(int(document) for share in shares for document in share)
    assert together == list(range(num_processes * num_drawn))


@given(num_processes=st.integers(1, 5), num_before=st.integers(0, 9))
def test_a_restored_share_goes_on_where_it_stopped(num_processes, num_before):
    for first in range(num_processes):
        share, restored = (EveryNth(Numbers(), first, num_processes) for _ in range(2))
        take(share, num_before)
        restored.restore(share.state())
        assert take(restored, 4) == take(share, 4)


def test_a_share_is_of_the_documents_of_all_sources():
    whole = take(MixedDocuments(SOURCES, "train"), 6)
    shares = [take(EveryNth(MixedDocuments(SOURCES, "train"), first, 2), 3) for first in (0, 1)]
    assert shares == [whole[0::2], whole[1::2]]


@given(lengths=st.lists(st.integers(1, 3000), max_size=12), process_index=st.integers(0, 1))
@settings(max_examples=20)
def test_restored_windows_go_on_at_the_next_token(tiny_checkpoint, lengths, process_index):
    tokenizer = tiny_checkpoint.decoder_tokenizer
    windows, restored = (open_windows(SOURCES, tokenizer, process_index, 2) for _ in range(2))
    for length in lengths:
        windows.draw(length)
    restored.restore(json.loads(json.dumps(windows.state())))
    following = [7, 500, 40, 2000]
    assert [restored.draw(length) for length in following] == [windows.draw(length) for length in following]
    assert restored.state() == windows.state()


@pytest.mark.parametrize("process_index", [0, 1])
def test_the_windows_of_a_process_are_cut_from_its_own_documents(tiny_checkpoint, process_index):
    tokenizer = tiny_checkpoint.decoder_tokenizer
    windows = open_windows([TextSource(kind="world")], tokenizer, process_index, 2)
    documents = EveryNth(MixedDocuments([TextSource(kind="world")], "train"), process_index, 2)
    own = [token_ids(documents.draw(), tokenizer) for _ in range(3)]
    for ids, number in zip(own, count(), strict=False):
        # A window as long as its whole document; what is shorter is joined to later ones.
        assert windows.draw(len(ids)) == ids, f"document {number}"
