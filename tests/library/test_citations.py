"""Citations name what the decoder read in full, of passages alone, and weights are shares of the passages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refrag.citations import NO_SOURCES, Sources
from refrag.history import read_turns
from refrag.request import ExpansionOptions, Request, SamplingParams

PASSAGES = ["Mara Tolen keeps a parrot. " * 8, "", "Odo plays the 🎵 harp   and sings. " * 8]
# Three chunks of passage 0, none of 1, two of 2, and one of an earlier turn.
SPANS = [(0, 0, 9), (0, 9, 18), (0, 18, 20), (2, 0, 7), (2, 7, 7), (3, 0, 5)]
SOURCES = Sources(np.array(SPANS, np.int32), num_passages=3)


@pytest.mark.parametrize(
    "expanded, cited",
    [
        ([], []),
        ([0], [(0, 0, 9)]),
        ([0, 1], [(0, 0, 18)]),
        ([0, 2], [(0, 0, 9), (0, 18, 20)]),
        ([2, 3], [(0, 18, 20), (2, 0, 7)]),
        ([4], []),
        ([5], []),
        ([0, 1, 2, 3, 4, 5], [(0, 0, 20), (2, 0, 7)]),
    ],
)
def test_neighbours_of_one_passage_are_one_span_and_turns_are_none(expanded, cited):
    assert SOURCES.cite(expanded).tolist() == [list(span) for span in cited]


def test_shares_are_of_the_passages_alone():
    shares = SOURCES.share(np.array([1, 2, 0, 1, 0, 50], np.float32))
    assert shares.tolist() == [0.75, 0, 0.25]
    assert SOURCES.share(np.zeros(6, np.float32)).tolist() == [0, 0, 0]


def test_no_passages_have_no_citations():
    assert NO_SOURCES.cite([]).shape == (0, 3)
    assert NO_SOURCES.share(np.zeros(0, np.float32)).shape == (0,)


def ask(pipeline, history=(), **options):
    request = Request("Who sings?", PASSAGES, ExpansionOptions(**options), read_turns(history))
    return pipeline.answer(request, SamplingParams(max_tokens=2))


def test_expanding_everything_cites_every_passage_whole(pipeline):
    answer = ask(pipeline, policy="all")
    assert answer.citations.tolist() == [[0, 0, len(PASSAGES[0])], [2, 0, len(PASSAGES[2])]]
    assert answer.passage_weights.sum() == pytest.approx(1)


def test_expanding_nothing_cites_nothing(pipeline):
    answer = ask(pipeline, policy="none")
    assert (len(answer.citations), answer.passage_weights.tolist()) == (0, [0, 0, 0])


@given(seed=st.integers(0, 2**32), fraction=st.floats(0, 1))
def test_spans_are_those_of_the_expanded_chunks_of_passages(pipeline, seed, fraction):
    long_turn = "We spoke of boats, and of winter. " * 20
    request = Request(
        "Who sings?", PASSAGES, ExpansionOptions(fraction, "random", seed), read_turns(["Who?", long_turn] * 2)
    )
    context = pipeline.prepare(request, max_tokens=2)
    vectors, question_vectors = pipeline.encode(context)
    expanded = pipeline.select(request.expansion, context, vectors, question_vectors).numbers
    assert len(set(context.chunks.passages.tolist())) > 2, "an earlier turn is to be chunks"
    cited = {(passage, place) for passage, start, end in context.sources.cite(expanded) for place in range(start, end)}
    expected = {
        (passage, place)
        for passage, start, end in (context.sources.spans[number] for number in expanded)
        if passage < len(PASSAGES)
        for place in range(start, end)
    }
    assert cited == expected


@pytest.mark.parametrize("policy", ["learned", "similarity", "neighbourhood", "random"])
def test_each_policys_weights_are_shares(pipeline, policy):
    weights = ask(pipeline, policy=policy, expand_fraction=0.3).passage_weights
    assert len(weights) == len(PASSAGES)
    assert weights.sum() == pytest.approx(1)
    assert weights[1] == 0, "an empty passage weighs nothing"
