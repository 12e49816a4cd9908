import itertools
import random
import re

import pytest

from refrag.data.contexts import ContextMaker
from refrag.data.tasks import SINGLE_TASKS, TASKS, UNKNOWN, ask
from refrag.data.world.kinds import KINDS
from refrag.data.world.world import Phrasing, make_document, make_world, split_of

ENTITY_NAMES = {(first, last) for kind in KINDS for first in kind.first_names for last in kind.last_names}
ATTRIBUTES = [attribute for kind in KINDS for attribute in kind.attributes]


def word_pairs(text):
    return set(itertools.pairwise(re.findall(r"\w+", text)))


@pytest.fixture(params=range(3))
def rng(request):
    return random.Random(request.param)


@pytest.fixture
def world(rng):
    return make_world(rng, 60, "train")


@pytest.fixture
def maker(rng, tiny_checkpoint):
    return ContextMaker.draw(rng, tiny_checkpoint.chunker)


def test_a_fact_stands_in_its_passage_where_it_says(world):
    for number, facts in enumerate(world.facts):
        for fact in facts:
            assert fact.passage == number
            assert world.passages[number][fact.start : fact.stop] == fact.value


def test_training_names_no_heldout_entity_and_evaluation_no_other(rng):
    for split in ("train", "heldout"):
        named = word_pairs(" ".join(make_world(rng, 40, split).passages)) & ENTITY_NAMES
        assert named
        assert {split_of(*name) for name in named} == {split}


def test_the_same_seed_draws_the_same_world():
    assert make_world(random.Random(3), 20, "train") == make_world(random.Random(3), 20, "train")


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.name)
def test_no_training_draws_the_phrasing_that_is_held_out(attribute):
    rng = random.Random(0)
    for templates in (attribute.statements, attribute.questions):
        assert len(set(templates)) == len(templates) >= 3
        drawn = {Phrasing("train").choose(rng, templates) for _ in range(200)}
        assert drawn == set(templates[:-1])
        assert Phrasing("heldout").choose(rng, templates) == templates[-1]


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda attribute: attribute.name)
def test_every_statement_has_one_value_and_every_sentence_its_entity(attribute):
    assert all(statement.count("{v}") == 1 for statement in attribute.statements)
    assert all(sentence.count("{e}") == 1 for sentence in attribute.statements + attribute.questions)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_questions_about_a_world(task, rng, world):
    passages = range(5) if task == "summary" else range(60)
    question = ask(rng, task, world, passages)
    assert question.task == task
    assert question.text.endswith("?")
    assert (question.answer == UNKNOWN) == (not question.evidence) == (task == "unanswerable")


@pytest.mark.parametrize("task", [*SINGLE_TASKS, "multihop", "followup"])
def test_the_last_evidence_is_the_answer(task, rng, world):
    for _ in range(10):
        question = ask(rng, task, world, range(60))
        span = question.evidence[-1]
        assert world.passages[span.passage][span.start : span.stop] == question.answer


def test_a_multihop_question_names_only_the_entity_that_it_starts_from(rng, world):
    question = ask(rng, "multihop", world, range(60))
    first, last = (world.entities[span.passage] for span in question.evidence)
    assert first.full_name in question.text
    assert last.full_name not in question.text


def test_what_is_claimed_is_true_where_the_answer_is_yes(rng, world):
    answers = set()
    for _ in range(20):
        question = ask(rng, "yesno", world, range(60))
        (span,) = question.evidence
        answers.add(question.answer)
        assert (world.passages[span.passage][span.start : span.stop] in question.text) == (question.answer == "yes")
    assert answers == {"yes", "no"}


def test_the_same_value_makes_two_entities_alike(rng, world):
    for _ in range(20):
        question = ask(rng, "comparison", world, range(60))
        values = [world.passages[span.passage][span.start : span.stop] for span in question.evidence]
        if question.answer in ("yes", "no"):
            assert (values[0] == values[1]) == (question.answer == "yes")
        else:
            earliest = min(question.evidence, key=lambda span: world.passages[span.passage][span.start : span.stop])
            assert question.answer == world.entities[earliest.passage].full_name


def test_a_followup_names_no_entity_but_a_turn_of_its_history_does(rng, world):
    question = ask(rng, "followup", world, range(60))
    name, _ = question.evidence
    assert not word_pairs(question.text) & ENTITY_NAMES
    assert word_pairs(question.history[name.passage][name.start : name.stop]) & ENTITY_NAMES


def test_a_document_tells_every_fact_twice(rng):
    world = make_world(rng, 6, "train")
    document = make_document(rng, world)
    for number, facts in enumerate(world.facts):
        assert world.passages[number] in document
        assert all(document.count(fact.value) >= 2 for fact in facts)


@pytest.mark.parametrize("task", TASKS)
def test_the_evidence_chunks_hold_the_evidence(task, rng, maker, tiny_checkpoint):
    context = maker.ask_one(rng, task, 8)
    (question,) = context.questions
    held = [token for number in question.evidence_chunks for token in context.chunks[number].token_ids]
    text = tiny_checkpoint.decoder_tokenizer.decode(held)
    if task in SINGLE_TASKS:
        assert question.answer in text
    if task == "summary":
        assert all(part.split(", ")[1] in text for part in question.answer.split("; "))


def test_chunks_are_cut_as_a_request_would_have_them(rng, maker, tiny_checkpoint):
    context = maker.ask_one(rng, "followup", 5)
    assert len(context.passages) in (6, 7)
    assert list(context.chunks) == list(tiny_checkpoint.chunker.context_chunks(context.passages))


def test_what_the_passages_do_not_tell_is_unknown_to_a_dense_context(rng, maker):
    for context in (maker.ask_many(rng, 3, 6) for _ in range(10)):
        assert len(context.questions) >= 6
        for question in context.questions:
            assert (question.answer == UNKNOWN) == (not question.evidence_chunks)


@pytest.mark.parametrize("task", SINGLE_TASKS)
def test_nothing_but_the_name_tells_which_rival_is_asked_about(task, rng, maker):
    world = maker.world
    for _ in range(10):
        context = maker.ask_among_rivals(rng, 4, 6, [task])
        passages = [world.passages.index(text) for text in context.passages]
        assert len(set(passages)) == 4
        assert len({world.entities[number].kind.name for number in passages}) == 1
        facts = [fact for number in passages for fact in world.facts[number]]
        assert len(context.questions) == 6
        for question in context.questions:
            assert question.task == task
            told = [fact for fact in facts if fact.value == question.answer]
            contested = [{each.passage for each in facts if each.attribute == fact.attribute} for fact in told]
            assert any(len(passages) > 1 for passages in contested)


@pytest.mark.parametrize("task", ["fact", "exact", "yesno", "comparison", "followup", "multihop"])
def test_the_strong_retriever_finds_what_most_answers_need(task, maker):
    rng = random.Random(task)
    complete = 0
    for _ in range(20):
        question = ask(rng, task, maker.world, maker.everything)
        found = maker.retriever.retrieve(rng, " ".join([*question.history, question.text]), 10)
        assert len(set(found)) == 10
        complete += all(span.in_history or span.passage in found for span in question.evidence)
    assert complete >= 16


def test_the_weak_retriever_draws_from_the_best_fifty(rng, maker):
    query = maker.world.passages[0]
    drawn = maker.retriever.retrieve(rng, query, 10, "weak")
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(maker.retriever.rank(query, 50))
