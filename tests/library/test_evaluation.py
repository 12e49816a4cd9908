import pytest

from refrag.context import prepare_context
from refrag.evaluation.exact_match import (
    Condition,
    ask,
    borrowed_vectors,
    choose_oracle,
    conditions,
    draw_heldout,
    evaluate,
    is_exact_match,
    wilson_interval,
)
from refrag.evaluation.report import markdown_table
from refrag.request import ContextRequest, ExpansionOptions
from refrag.training.data import TokenisedQuestion


def question_with(answer_chunks):
    return TokenisedQuestion("who?", "me", [], [], [], answer_chunks)


@pytest.mark.parametrize("num_chunks, chosen", [(40, [7, 8]), (19, [7]), (9, [])])
def test_the_oracle_expands_the_answer_as_far_as_the_budget_goes(num_chunks, chosen):
    assert choose_oracle(question_with([7, 8]), num_chunks, 0.1) == chosen


def test_only_the_whole_answer_counts():
    assert is_exact_match(" teal", "teal")
    assert not is_exact_match(" teal blue", "teal")


def test_the_interval_holds_the_share_and_narrows_with_more_questions():
    low, high = wilson_interval(30, 100)
    assert low < 0.3 < high
    wide, narrow = high - low, (lambda pair: pair[1] - pair[0])(wilson_interval(300, 1000))
    assert narrow < wide / 2
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == 1


def test_every_condition_asks_the_same_questions(pipeline):
    small, large = (pipeline.checkpoint.with_chunk_size(k).chunker for k in (8, 16))
    one, other = draw_heldout(small, 3, 5, seed=1), draw_heldout(large, 3, 5, seed=1)
    assert [c.passages for c in one] == [c.passages for c in other]
    assert [c.questions[0].text for c in one] == [c.questions[0].text for c in other]


def test_the_control_expands_the_same_chunks(pipeline):
    context, other = draw_heldout(pipeline.chunker, 6, 2, seed=0)
    true = Condition("", 16, "learned", 0.2)
    shuffled = Condition("", 16, "learned", 0.2, shuffled="embeddings")
    outcomes = [ask(pipeline, condition, context, other, seed=0) for condition in (true, shuffled)]
    assert outcomes[0].num_expanded == outcomes[1].num_expanded > 0
    assert outcomes[0].num_slots == outcomes[1].num_slots


def test_the_control_of_all_vectors_misleads_the_policy(pipeline):
    context, other = draw_heldout(pipeline.chunker, 6, 2, seed=0)
    prepared = prepare_context(ContextRequest(context.questions[0].text, context.passages), pipeline.chunker)
    vectors, question_vectors = pipeline.encode(prepared)
    borrowed = borrowed_vectors(pipeline, other.chunks, len(vectors))
    options = ExpansionOptions(0.3)
    assert borrowed.shape == vectors.shape
    assert pipeline.select(options, prepared, borrowed, question_vectors) != pipeline.select(
        options, prepared, vectors, question_vectors
    )


def test_no_context_leaves_the_question_alone(pipeline):
    result = evaluate(pipeline.checkpoint, conditions([16], 0.1)[0], 4, 2, seed=0)
    assert result.mean_expanded_chunks == 0
    assert result.mean_prompt_slots < 40


def test_the_table_has_a_dash_where_the_budget_reaches_no_chunk():
    row = {
        "condition": {"name": "learned", "expand_fraction": 0.1},
        "num_passages": 1,
        "exact_match": 0.5,
        "interval_95": [0.4, 0.6],
        "mean_context_tokens": 50,
        "mean_expanded_chunks": 0.0,
        "mean_prompt_slots": 20.0,
    }
    full = {**row, "num_passages": 9, "mean_expanded_chunks": 3.0}
    last = markdown_table({"results": [row, full]}).splitlines()[-1]
    assert last == "| learned | – | 50.0 (40–60) | 20 |"


def test_contexts_differ_by_seed(pipeline):
    drawn = [draw_heldout(pipeline.chunker, 2, 3, seed)[0].passages for seed in (1, 2)]
    assert drawn[0] != drawn[1]


def test_with_the_whole_budget_the_policy_expands_at_least_as_much(pipeline):
    sure = Condition("", 8, "learned", 0.3)
    whole = Condition("", 8, "learned", 0.3, whole_budget=True)
    expanded = [evaluate(pipeline.checkpoint, c, 5, 3, seed=0).mean_expanded_chunks for c in (sure, whole)]
    assert 0 < expanded[0] <= expanded[1]
