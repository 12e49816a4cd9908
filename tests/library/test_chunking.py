import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from refrag.context.chunking import Chunk, Chunker, PackedChunks
from refrag.data.tokenizer import train_tokenizer
from refrag.store.forms import TokenForm
from refrag.store.store import Store
from refrag.store.tiers.memory import MemoryTier
from refrag.store.tokens import StoredTokens

PASSAGES = ["Mara Tolen keeps a cat.", "Odo Marsk plays the flute every evening, and sings.", "It is late.", ""]
TOKENS = st.lists(st.integers(0, 2000), max_size=100)


@given(TOKENS, st.integers(1, 20))
def test_chunks_joined_are_the_tokens(tokens, chunk_size):
    chunks = PackedChunks.cut([tokens], chunk_size)
    assert [token for chunk in chunks for token in chunk.token_ids] == tokens


@given(TOKENS, st.integers(1, 20))
def test_only_the_last_chunk_may_be_short_and_none_is_empty(tokens, chunk_size):
    lengths = [len(chunk) for chunk in PackedChunks.cut([tokens], chunk_size)]
    assert all(length == chunk_size for length in lengths[:-1])
    assert all(1 <= length <= chunk_size for length in lengths)


def test_a_chunk_never_spans_two_passages(tiny_checkpoint):
    chunker = tiny_checkpoint.chunker
    together = chunker.context_chunks(["Mara Tolen keeps a cat.", "", "Odo Marsk plays the flute every evening."])
    assert [c.passage for c in together] == sorted(c.passage for c in together)
    assert {c.passage for c in together} == {0, 2}


def test_a_passage_has_the_same_chunks_under_any_neighbours(tiny_checkpoint):
    chunker = tiny_checkpoint.chunker
    alone = chunker.context_chunks(["Odo Marsk plays the flute."])
    among = chunker.context_chunks(["Some other passage.", "Odo Marsk plays the flute."])
    assert [c.token_ids for c in alone] == [c.token_ids for c in among if c.passage == 1]


@given(rounds=st.lists(st.lists(st.sampled_from(PASSAGES), max_size=6), max_size=5), limit_bytes=st.integers(0, 3000))
def test_chunks_out_of_a_cache_are_those_without_one(tiny_checkpoint, rounds, limit_bytes):
    plain = tiny_checkpoint.chunker
    store = Store(b"f" * 16, TokenForm(2**31, plain.config.chunk_size), MemoryTier(limit_bytes), [])
    cached = Chunker(plain.config, plain.frame, plain.decoder_tokenizer, cache=StoredTokens(store))
    for passages in rounds:
        read, uncached = cached.read_passages(passages), plain.read_passages(passages)
        assert list(read.chunks) == list(uncached.chunks)
        assert read.spans.tolist() == uncached.spans.tolist()
        cached.cache.put(read.new_tokens)
    store.close()


def test_a_passage_is_tokenised_once(tiny_checkpoint, monkeypatch):
    plain = tiny_checkpoint.chunker
    store = Store(b"f" * 16, TokenForm(2**31, plain.config.chunk_size), MemoryTier(2**20), [])
    cached = Chunker(plain.config, plain.frame, plain.decoder_tokenizer, cache=StoredTokens(store))
    asked = []
    monkeypatch.setattr(cached, "tokenise", lambda passages: asked.append(passages) or plain.tokenise(passages))
    for passages in (PASSAGES[:2], PASSAGES[1:], PASSAGES * 2):
        cached.cache.put(cached.read_passages(passages).new_tokens)
    store.close()
    assert [passage for passages in asked for passage in passages] == PASSAGES[:-1]
    # Nor is what is empty looked for.
    assert store.memory_counts.hits + store.memory_counts.misses == 2 + 2 + 3


@pytest.mark.parametrize("special", ["<|eos|>", "<|bos|>", "<|pad|>"])
def test_a_special_token_spelt_out_by_a_caller_stays_text(tiny_checkpoint, special):
    chunker, tokenizer = tiny_checkpoint.chunker, tiny_checkpoint.decoder_tokenizer
    for ids in (chunker.passage_ids(f"a {special} b"), chunker.question_ids(special)):
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert special in tokenizer.decode(ids)


@given(st.lists(st.text(min_size=1), max_size=4))
def test_tokens_are_those_of_transformers_own_call(tiny_checkpoint, passages):
    chunker, tokenizer = tiny_checkpoint.chunker, tiny_checkpoint.decoder_tokenizer
    # As another user of the tokenizer may leave it.
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=4, split_special_tokens=False)
    template = tiny_checkpoint.config.template
    texts = [template.passage_prefix + passage + template.passage_suffix for passage in passages]
    expected = [tokenizer(each, add_special_tokens=False, split_special_tokens=True).input_ids for each in texts]
    assert chunker.passages_ids(passages) == expected


def test_an_empty_passage_has_no_chunk(tiny_checkpoint):
    assert len(tiny_checkpoint.chunker.context_chunks(["", ""])) == 0


def test_encoder_inputs_are_padded_and_masked(tiny_checkpoint):
    ids, mask = tiny_checkpoint.chunker.encoder_inputs(PackedChunks.cut([range(5, 25)], 16))
    assert ids.shape == mask.shape == (2, 16)
    assert mask.sum(1).tolist() == [16, 4]
    assert ids[1, :4].tolist() == [21, 22, 23, 24]


def test_an_encoder_with_its_own_tokenizer_gets_the_text_of_the_chunk(tiny_checkpoint):
    own: PreTrainedTokenizerFast = train_tokenizer(vocab_size=300, seed=1, num_documents=5)
    chunker = Chunker.of(tiny_checkpoint.config, tiny_checkpoint.decoder_tokenizer, own)
    chunk = chunker.context_chunks(["a cat"])[0]
    ids, mask = chunker.encoder_inputs([chunk])
    assert own.decode(ids[0, : mask[0].sum()]) == " a cat\n"


def cut_one_by_one(token_ids, chunk_size, passage=0):
    """Cut the slow, obvious way."""
    starts = range(0, len(token_ids), chunk_size)
    return [Chunk(tuple(token_ids[start : start + chunk_size]), passage) for start in starts]


@given(st.lists(TOKENS, max_size=5), st.integers(1, 20))
def test_passages_cut_together_have_the_chunks_of_each_alone(passages, chunk_size):
    packed = PackedChunks.cut(passages, chunk_size)
    alone = [chunk for number, tokens in enumerate(passages) for chunk in cut_one_by_one(tokens, chunk_size, number)]
    assert list(packed) == [packed[number] for number in range(len(packed))] == alone
    assert packed.token_ids.shape == (len(alone), chunk_size)
    assert packed.lengths.tolist() == [len(chunk) for chunk in alone]
    assert packed.num_tokens == sum(map(len, passages))


@given(st.lists(st.tuples(TOKENS.filter(len), st.integers(0, 9)), max_size=5), st.slices(20))
def test_packed_chunks_are_the_same_chunks(runs, some):
    chunks = [chunk for tokens, passage in runs for chunk in cut_one_by_one(tokens, 16, passage)]
    assert list(PackedChunks.of(chunks)) == chunks
    assert list(PackedChunks.of(chunks)[some]) == chunks[some]
    assert list(PackedChunks.of(chunks)[list(range(len(chunks)))]) == chunks


@given(st.lists(st.lists(TOKENS, max_size=3), min_size=1, max_size=4), st.integers(1, 20))
def test_packed_chunks_and_others_go_one_after_another(contexts, chunk_size):
    packed = [PackedChunks.cut(passages, chunk_size) for passages in contexts]
    others = cut_one_by_one([7] * 5, 3)
    assert list(PackedChunks.of(*packed, others)) == [*(chunk for run in packed for chunk in run), *others]


def test_no_runs_are_no_chunks():
    assert list(PackedChunks.of()) == list(PackedChunks.of([])) == []
