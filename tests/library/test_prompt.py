from hypothesis import given
from hypothesis import strategies as st

from refrag.chunking import Chunk, cut_into_chunks
from refrag.prompt import lay_out_prompt

VOCAB, BOS = 1000, 1
CHUNKS = cut_into_chunks(list(range(10, 26)), 4)  # four chunks of four


def test_the_layout_of_the_drawing():
    prompt = lay_out_prompt(CHUNKS, {2}, [91, 92], VOCAB, BOS)
    assert prompt.input_ids.tolist() == [BOS, 1000, 1001, 18, 19, 20, 21, 1002, 91, 92]
    assert prompt.compressed == [0, 1, 3]


def test_expanding_nothing_takes_one_slot_for_each_chunk():
    assert lay_out_prompt(CHUNKS, set(), [91], VOCAB, None).input_ids.tolist() == [1000, 1001, 1002, 1003, 91]


def test_expanding_everything_is_the_plain_prompt():
    prompt = lay_out_prompt(CHUNKS, range(4), [91], VOCAB, BOS)
    assert prompt.input_ids.tolist() == [BOS, *range(10, 26), 91]
    assert not prompt.extra_ids.any()


def test_no_chunks_leave_the_question():
    assert lay_out_prompt([], set(), [91, 92], VOCAB, BOS).input_ids.tolist() == [BOS, 91, 92]


@given(st.sets(st.integers(0, 3)))
def test_each_compressed_chunk_has_one_placeholder_and_one_hash(expanded):
    prompt = lay_out_prompt(CHUNKS, expanded, [91], VOCAB, BOS)
    placeholders = prompt.input_ids[prompt.input_ids >= VOCAB]
    assert placeholders.tolist() == [VOCAB + row for row in range(4 - len(expanded))]
    assert (prompt.extra_ids != 0).tolist() == (prompt.input_ids >= VOCAB).tolist()
    assert prompt.num_slots == 1 + sum(4 if n in expanded else 1 for n in range(4)) + 1


def test_the_hash_tells_contents_apart_and_forgets_the_place():
    first, second = Chunk((1, 2, 3), passage=0), Chunk((1, 2, 4), passage=0)
    moved = Chunk((1, 2, 3), passage=5)
    hashes = lay_out_prompt([first, second, moved], set(), [], VOCAB, None).extra_ids.tolist()
    assert hashes[0] == hashes[2] != hashes[1]
