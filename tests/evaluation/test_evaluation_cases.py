import random

import pytest

from refrag.data.contexts import NUM_ENTITIES, ContextMaker
from refrag.data.sources import TextSource
from refrag.data.tasks import TASKS
from refrag.data.world.world import make_world
from refrag.evaluation.cases import Asking, draw_prose, draw_questions


def draw_in_chunks(checkpoint, chunk_size, seed, num_passages):
    """Return the questions as training draws them, with chunks of this size from the start."""
    world = make_world(random.Random(f"{seed} 0"), NUM_ENTITIES, "heldout")
    maker = ContextMaker(world, checkpoint.with_chunk_size(chunk_size).chunker)
    return [maker.ask_one(random.Random(f"{seed} 0 {task}"), task, num_passages) for task in TASKS]


@pytest.mark.parametrize("chunk_size", [7, 16])
def test_a_case_cut_to_any_size_is_the_context_drawn_with_that_size(cases, models, chunk_size):
    contexts = draw_in_chunks(models.checkpoint, chunk_size, seed=1, num_passages=4)
    for case, context in zip(cases.cases, contexts, strict=True):
        assert list(case.chunks(chunk_size)) == list(context.chunks)
        assert case.evidence_chunks(chunk_size) == context.questions[0].evidence_chunks
        assert case.num_chunks(chunk_size) == len(context.chunks)
        assert case.target_ids == context.questions[0].answer_ids


def test_every_task_has_as_many_questions(models):
    drawn = draw_questions(models.checkpoint, Asking(("fact", "exact"), 3, 2), seed=0)
    assert [case.task for case in drawn] == ["fact", "exact", "fact", "exact"]


def test_more_passages_leave_the_questions_as_they_are(models):
    tasks = ("fact", "multihop", "followup")
    few, many = (draw_questions(models.checkpoint, Asking(tasks, 3, n, "weak"), seed=0) for n in (2, 9))
    assert [case.prompt_ids for case in few] == [case.prompt_ids for case in many]
    assert [case.target_ids for case in few] == [case.target_ids for case in many]
    assert sum(case.num_tokens for case in few) < sum(case.num_tokens for case in many)


def test_a_window_of_prose_is_context_and_target(models):
    tokenizer = models.checkpoint.decoder_tokenizer
    drawn = draw_prose(TextSource(kind="world"), tokenizer, 32, 8, count=3, seed=0)
    assert [(case.num_tokens, len(case.target_ids)) for case in drawn] == [(32, 8)] * 3
