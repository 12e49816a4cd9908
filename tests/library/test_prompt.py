import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refrag.context.chunking import Chunk, PackedChunks
from refrag.prompt import lay_out_prompt, table_extra_ids
from refrag.store.keys import DIGEST_BYTES, digest_chunks

VOCAB, BOS = 1000, 1
CHUNKS = PackedChunks.cut([list(range(10, 26))], 4)  # four chunks of four


def test_the_layout_of_the_drawing():
    prompt = lay_out_prompt(CHUNKS, {2}, [91, 92], VOCAB, [BOS])
    assert prompt.input_ids.tolist() == [BOS, 1000, 1001, 18, 19, 20, 21, 1002, 91, 92]
    assert prompt.compressed.tolist() == [0, 1, 3]


def test_expanding_nothing_takes_one_slot_for_each_chunk():
    assert lay_out_prompt(CHUNKS, set(), [91], VOCAB, []).input_ids.tolist() == [1000, 1001, 1002, 1003, 91]


def test_expanding_everything_is_the_plain_prompt():
    prompt = lay_out_prompt(CHUNKS, range(4), [91], VOCAB, [BOS])
    assert prompt.input_ids.tolist() == [BOS, *range(10, 26), 91]
    assert table_extra_ids(prompt, VOCAB, np.zeros((0, DIGEST_BYTES), np.uint8)).tolist() == [0] * prompt.num_slots


def test_no_chunks_leave_the_question():
    assert lay_out_prompt(PackedChunks.of([]), set(), [91, 92], VOCAB, [BOS]).input_ids.tolist() == [BOS, 91, 92]


@given(st.sets(st.integers(0, 3)))
def test_each_compressed_chunk_has_one_placeholder_and_one_hash(expanded):
    prompt = lay_out_prompt(CHUNKS, expanded, [91], VOCAB, [BOS])
    placeholders = prompt.input_ids[prompt.input_ids >= VOCAB]
    assert placeholders.tolist() == [VOCAB + row for row in range(4 - len(expanded))]
    assert (extra_ids(prompt, CHUNKS) != 0).tolist() == (prompt.input_ids >= VOCAB).tolist()
    assert prompt.num_slots == 1 + sum(4 if n in expanded else 1 for n in range(4)) + 1


@given(st.lists(st.tuples(st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=5), st.booleans()), max_size=6))
def test_slots_hold_the_chunks_one_after_another(runs):
    prompt = lay_out_prompt(
        PackedChunks.of(Chunk(tuple(tokens), 0) for tokens, _ in runs),
        [number for number, (_, is_expanded) in enumerate(runs) if is_expanded],
        [91],
        VOCAB,
        [BOS],
    )
    expected, row = [BOS], VOCAB
    for tokens, is_expanded in runs:
        expected += tokens if is_expanded else [row]
        row += not is_expanded
    assert prompt.input_ids.tolist() == [*expected, 91]


def test_the_hash_tells_contents_apart_and_forgets_the_place():
    first, second = Chunk((1, 2, 3), passage=0), Chunk((1, 2, 4), passage=0)
    moved = Chunk((1, 2, 3), passage=5)
    chunks = PackedChunks.of([first, second, moved])
    hashes = extra_ids(lay_out_prompt(chunks, set(), [], VOCAB, []), chunks).tolist()
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_hash_is_never_that_of_text():
    chunks = PackedChunks.cut([[5, 6]], 1)
    digests = np.zeros((2, DIGEST_BYTES), np.uint8)
    prompt = lay_out_prompt(chunks, set(), [], VOCAB, [])
    assert table_extra_ids(prompt, VOCAB, digests).tolist() == [1, 1]


def extra_ids(prompt, chunks):
    digests = b"".join(digest_chunks(chunks.token_ids))
    return table_extra_ids(prompt, VOCAB, np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES))
