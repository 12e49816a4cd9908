"""Batches held by equality with their examples, laid out one by one, slot after slot."""

import random
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refrag.context.chunking import Chunk, Chunker, PackedChunks
from refrag.data.contexts import ContextMaker
from refrag.errors import TrainingError
from refrag.teacher_forcing.batches import (
    MixedExample,
    Segment,
    collate_contexts,
    collate_mixed,
    encoder_batch,
    first_rows,
    pack,
    question_segments,
)
from refrag.teacher_forcing.movable import Movable
from refrag.teacher_forcing.predict import predict

VOCAB_SIZE, BOS_ID = 100, 1

token_ids = st.lists(st.integers(2, VOCAB_SIZE - 1), min_size=1, max_size=4)
weights = st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def batches_of_examples(draw):
    """Examples whose chunks stand one after another in one table of chunk embeddings."""
    contexts = draw(st.lists(st.lists(token_ids, max_size=4), min_size=1, max_size=5))
    examples, first_row = [], 0
    for context in contexts:
        chunks = [Chunk(tuple(ids), 0) for ids in context]
        expanded = draw(st.sets(st.sampled_from(range(len(chunks))))) if chunks else set()
        segments = draw(st.lists(st.builds(Segment, token_ids, weights, st.booleans()), min_size=1, max_size=3))
        examples.append(MixedExample(chunks, expanded, segments, first_row, draw(weights)))
        first_row += len(chunks)
    return examples


def slots_of(example, head_ids):
    """Return (id, weight of predicting it, whether it is of an answer) for each slot."""
    slots = [(token, 0.0, False) for token in head_ids]
    for number, chunk in enumerate(example.chunks):
        if number in example.expanded:
            slots += [(token, example.context_weight, False) for token in chunk.token_ids]
        else:
            slots.append((VOCAB_SIZE + example.first_row + number, 0.0, False))
    for segment in example.segments:
        slots += [(token, segment.weight, segment.is_answer) for token in segment.token_ids]
    return slots


def of_example(tensor, batch, number):
    return tensor[batch.example_ids == number].tolist()


def collations(test):
    """Run a test on batches with heads of several lengths, with examples in rows of their own or packed."""
    some = given(
        batches_of_examples(), st.sampled_from([[], [BOS_ID], [BOS_ID, 7]]), st.sampled_from([None, 1, 12, 40])
    )
    return settings(max_examples=50)(some(test))


@collations
def test_the_slots_are_those_of_each_example_alone(examples, head_ids, row_slots):
    batch = collate_mixed(examples, VOCAB_SIZE, head_ids, row_slots)
    for number, example in enumerate(examples):
        assert of_example(batch.input_ids, batch, number) == [id for id, _, _ in slots_of(example, head_ids)]


@collations
def test_what_is_to_be_predicted_is_what_stands_in_the_next_slot(examples, head_ids, row_slots):
    batch = collate_mixed(examples, VOCAB_SIZE, head_ids, row_slots)
    for number, example in enumerate(examples):
        parts = (of_example(part, batch, number) for part in (batch.labels, batch.weights, batch.is_answer))
        predictions = zip(*parts, strict=True)
        followers = slots_of(example, head_ids)[1:]
        assert [each for each in predictions if each[1] > 0] == [each for each in followers if each[1] > 0]


@collations
def test_no_row_of_chunk_embeddings_is_to_be_predicted(examples, head_ids, row_slots):
    batch = collate_mixed(examples, VOCAB_SIZE, head_ids, row_slots)
    assert (batch.labels[batch.weights > 0] < VOCAB_SIZE).all()


@collations
def test_placeholders_number_the_chunks_of_the_whole_batch(examples, head_ids, row_slots):
    batch = collate_mixed(examples, VOCAB_SIZE, head_ids, row_slots)
    rows = sorted((batch.input_ids[batch.input_ids >= VOCAB_SIZE] - VOCAB_SIZE).tolist())
    expanded = {example.first_row + number for example in examples for number in example.expanded}
    assert rows == [row for row in range(sum(len(example.chunks) for example in examples)) if row not in expanded]


@collations
def test_position_ids_start_anew_with_each_packed_example(examples, head_ids, row_slots):
    batch = collate_mixed(examples, VOCAB_SIZE, head_ids, row_slots)
    if row_slots is None:
        assert batch.position_ids is None
        return
    for number, example in enumerate(examples):
        assert of_example(batch.position_ids, batch, number) == list(range(len(slots_of(example, head_ids))))


@given(batches_of_examples(), st.sampled_from([[], [BOS_ID, 7]]), st.integers(0, 20))
def test_an_example_beyond_the_window_loses_its_last_chunks_alone(examples, head_ids, room):
    needed = max(sum(len(segment.token_ids) for segment in example.segments) for example in examples)
    window = len(head_ids) + needed + room
    batch = collate_mixed(examples, VOCAB_SIZE, head_ids, window=window)
    for number, example in enumerate(examples):
        counts = range(len(example.chunks) + 1)
        cuts = [
            replace(example, chunks=example.chunks[:count], expanded=example.expanded & {*range(count)})
            for count in counts
        ]
        longest = max((slots_of(cut, head_ids) for cut in cuts if len(slots_of(cut, head_ids)) <= window), key=len)
        assert of_example(batch.input_ids, batch, number) == [id for id, _, _ in longest]


def test_segments_that_the_window_has_no_room_for_are_refused():
    example = MixedExample([], set(), [Segment([2] * 10, 0.0), Segment([3] * 5, 1.0)])
    assert collate_mixed([example], VOCAB_SIZE, [BOS_ID], window=16).input_ids.shape == (1, 16)
    with pytest.raises(TrainingError, match="need 15 slots, and max_prompt_slots of the pair leaves 14"):
        collate_mixed([example], VOCAB_SIZE, [BOS_ID], window=15)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 40))
def test_packed_rows_hold_every_example_once_and_no_more_than_fits(lengths, row_slots):
    rows = pack(lengths, row_slots)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= row_slots or len(row) == 1 for row in rows)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(30, 60))
def test_of_packed_rows_no_two_would_fit_into_one(lengths, row_slots):
    sums = sorted(sum(lengths[number] for number in row) for row in pack(lengths, row_slots))
    assert len(sums) == 1 or sums[0] + sums[1] > row_slots


@pytest.fixture(scope="module")
def contexts(tiny_checkpoint):
    rng = random.Random(0)
    maker = ContextMaker.draw(rng, tiny_checkpoint.chunker)
    return [maker.ask_many(rng, count, 3) for count in (2, 3, 1)]


@pytest.fixture(scope="module")
def batch(contexts, tiny_checkpoint):
    return collate_contexts(tiny_checkpoint.chunker, contexts, seed=5)


@torch.no_grad()
def test_an_example_is_predicted_alike_alone_beside_others_and_packed(contexts, tiny_checkpoint):
    decoder, chunks = tiny_checkpoint.decoder, [len(context.chunks) for context in contexts]
    embeddings = torch.randn(sum(chunks), decoder.width)
    rows = first_rows(context.chunks for context in contexts)
    examples = [
        MixedExample(context.chunks, {0, 2}, question_segments(context.questions[0], 1.0, 0.5), row)
        for context, row in zip(contexts, rows, strict=True)
    ]

    def losses(*some, row_slots=None):
        return predict(decoder, collate_mixed(some, decoder.vocab_size, [BOS_ID], row_slots), embeddings).losses

    alone = torch.cat([losses(example) for example in examples])
    torch.testing.assert_close(losses(*examples), alone, atol=1e-5, rtol=1e-5)
    for row_slots in (1, 100, 1000):
        packed = losses(*examples, row_slots=row_slots)
        # Packing puts the longest first.
        torch.testing.assert_close(packed.sort().values, alone.sort().values, atol=1e-5, rtol=1e-5)


def test_a_policy_row_points_at_the_chunks_of_its_context_and_of_its_question(contexts, batch):
    chunks = [chunk for context in contexts for chunk in context.chunks]
    pairs = [(context, question) for context in contexts for question in context.questions]
    question_chunks = [chunk for _, question in pairs for chunk in question.chunks]
    policy = batch.policy
    assert len(policy.chunk_rows) == len(pairs)
    for row, (context, question) in enumerate(pairs):
        present = policy.passages[row] >= 0
        assert [chunks[number] for number in policy.chunk_rows[row][present]] == list(context.chunks)
        assert policy.passages[row][present].tolist() == [chunk.passage for chunk in context.chunks]
        asked = policy.question_mask[row]
        assert [question_chunks[number] for number in policy.question_rows[row][asked]] == list(question.chunks)


def test_evidence_is_marked_chunk_by_chunk(contexts, batch):
    questions = [question for context in contexts for question in context.questions]
    marked = [row.nonzero().flatten().tolist() for row in batch.policy.evidence]
    assert marked == [question.evidence_chunks for question in questions]
    assert any(marked)


def test_first_rows_stand_one_behind_another():
    assert first_rows([[1, 2], [], [3], [4, 5, 6]]) == [0, 2, 2, 3]


@pytest.mark.parametrize("tokenizer", ["the decoder's", "its own"])
def test_the_encoder_reads_what_the_chunker_says_and_no_padding_beyond_the_longest(tiny_checkpoint, tokenizer):
    own = tiny_checkpoint.decoder_tokenizer if tokenizer == "its own" else None
    chunker = Chunker.of(tiny_checkpoint.config, tiny_checkpoint.decoder_tokenizer, own)
    chunks = PackedChunks.cut([chunker.passage_ids("Mara Tolen lives in Ostmark.")], 5)
    batch = encoder_batch(chunker, chunks)
    ids, mask = map(torch.from_numpy, chunker.encoder_inputs(chunks))
    width = int(mask.sum(1).max())
    assert batch.input_ids.shape[1] == width < chunker.config.encoder_length
    assert torch.equal(batch.input_ids, ids[:, :width])
    assert torch.equal(batch.attention_mask, mask[:, :width])


def test_no_chunks_are_an_empty_batch_for_the_encoder(tiny_checkpoint):
    batch = encoder_batch(tiny_checkpoint.chunker, [])
    assert batch.input_ids.shape == batch.attention_mask.shape == (0, 1)


def values_of(batch, path=()):
    """Yield (place, value) of every field, those of batches within batches too."""
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Movable):
            yield from values_of(value, (*path, field.name))
        else:
            yield (*path, field.name), value


def test_a_moved_batch_has_all_its_tensors_there(batch):
    moved = dict(values_of(batch.to(torch.device("meta"))))
    assert {place: value.device.type for place, value in moved.items() if isinstance(value, torch.Tensor)} == {
        place: "meta" for place, value in values_of(batch) if isinstance(value, torch.Tensor)
    }
    assert moved[("policy", "evidence")].shape == batch.policy.evidence.shape
    assert moved[("contexts",)] is batch.contexts
    assert moved[("seed",)] == 5


def test_a_moved_batch_keeps_its_values(batch):
    moved = dict(values_of(batch.to(torch.device("cpu"))))
    for place, value in values_of(batch):
        assert torch.equal(moved[place], value) if isinstance(value, torch.Tensor) else moved[place] == value


def test_short_examples_fill_rows_that_one_long_example_makes_longer():
    short = [MixedExample([], set(), [Segment([2] * 10, 1.0)]) for _ in range(9)]
    long = MixedExample([], set(), [Segment([3] * 50, 1.0)])
    assert collate_mixed(short, VOCAB_SIZE, [], row_slots=20).input_ids.shape == (5, 20)
    assert collate_mixed([*short, long], VOCAB_SIZE, [], row_slots=20).input_ids.shape == (3, 50)
