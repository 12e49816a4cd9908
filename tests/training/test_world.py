import itertools
import random
import re

import pytest

from refrag.training.data import draw_context
from refrag.training.kinds import KINDS
from refrag.training.world import make_context, split_of

ENTITY_NAMES = {(first, last) for kind in KINDS for first in kind.first_names for last in kind.last_names}


def word_pairs(text):
    words = re.findall(r"\w+", text)
    return set(itertools.pairwise(words))


@pytest.fixture(params=range(20))
def rng(request):
    return random.Random(request.param)


def test_the_answer_stands_in_its_passage_where_the_question_says(rng):
    context = make_context(rng, 5, 8, "train")
    for question in context.questions:
        assert context.passages[question.passage][question.start : question.stop] == question.answer


def test_the_question_names_its_entity_in_full_and_no_other_passage_does(rng):
    context = make_context(rng, 6, 4, "heldout")
    for question in context.questions:
        (name,) = word_pairs(question.text) & ENTITY_NAMES
        named = [number for number, passage in enumerate(context.passages) if name in word_pairs(passage)]
        assert named == [question.passage]


def test_training_names_no_heldout_entity_and_evaluation_no_other(rng):
    for split in ("train", "heldout"):
        named = word_pairs(" ".join(make_context(rng, 20, 1, split).passages)) & ENTITY_NAMES
        assert named
        assert {split_of(*name) for name in named} == {split}


def test_the_same_seed_draws_the_same_context():
    assert make_context(random.Random(3), 4, 4, "train") == make_context(random.Random(3), 4, 4, "train")


def test_the_labelled_chunks_hold_the_answer(rng, tiny_checkpoint):
    context = draw_context(rng, tiny_checkpoint.chunker, 4, 6, "train")
    tokenizer = tiny_checkpoint.decoder_tokenizer
    for question in context.questions:
        assert question.answer_chunks
        held = [token for number in question.answer_chunks for token in context.chunks[number].token_ids]
        assert question.answer in tokenizer.decode(held)
