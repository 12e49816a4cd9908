"""Question rows as contexts in tokens: where the evidence stands, and what is answered where there is none."""

from dataclasses import replace

import pytest

from refrag.data.questions.contexts import NOT_FOUND, RowContexts, is_stranger
from refrag.data.questions.evidence import find_answer
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.history import Turn
from refrag.pipeline import Pipeline
from refrag.request import Request

BRIDGE = (
    "For ninety years nobody dared to cross the river on anything but a boat. Then Ana Korvin built the bridge over "
    "the Lurd. The ferry went out of use, its keeper sold honey on the market of Harrow, and the boat rots in reeds."
)
MILL = SourcePassage("mill", "The mill", "The mill of Harrow burned down in 1911, and with it the house of Ana Korvin.")
ROW = QuestionRow(
    id="q",
    source="town",
    question="Who built the bridge?",
    answers=("Ana Korvin", "Korvin"),
    answerable=True,
    passages=(MILL, SourcePassage("bridge", "The bridge", BRIDGE)),
    gold=(1,),
)
OTHER = replace(ROW, id="other", passages=(SourcePassage("bees", "", "Harrow sells honey from forty hives."),), gold=())


@pytest.fixture
def maker(tiny_checkpoint):
    return RowContexts(tiny_checkpoint.chunker)


def text_of(maker, context, numbers):
    return "".join(maker.chunker.decoder_tokenizer.decode([context.chunks[number].token_ids for number in numbers]))


def test_the_chunks_are_those_that_a_server_cuts(maker):
    context = maker.make(ROW, 2, seed=0)
    served = maker.chunker.context_chunks(context.passages)
    assert context.chunks.token_ids.tolist() == served.token_ids.tolist()
    assert sorted(context.passages) == sorted(passage.content for passage in ROW.passages)


def test_the_evidence_holds_the_answer_in_the_passage_that_the_row_names(maker):
    for seed in range(4):
        context = maker.make(ROW, 2, seed)
        [question] = context.questions
        assert "Ana Korvin" in text_of(maker, context, question.evidence_chunks)
        place = context.passages.index(ROW.passages[1].content)
        assert {context.chunks[number].passage for number in question.evidence_chunks} == {place}
        assert len(question.evidence_chunks) < sum(context.chunks.passages == place)


def test_the_evidence_has_the_chunks_beside_the_answer(maker):
    context = maker.make(ROW, 2, seed=0)
    evidence = context.questions[0].evidence_chunks
    assert evidence == list(range(evidence[0], evidence[-1] + 1))
    assert "Ana Korvin" in text_of(maker, context, evidence[1:-1])


def test_an_answer_that_stands_nowhere_has_its_whole_passages_as_evidence(maker):
    context = maker.make(replace(ROW, answers=("yes",), task="boolean"), 2, seed=1)
    place = context.passages.index(ROW.passages[1].content)
    assert context.questions[0].evidence_chunks == [n for n, p in enumerate(context.chunks.passages) if p == place]


def test_a_row_that_names_no_passage_has_evidence_in_all_that_hold_the_answer(maker):
    context = maker.make(replace(ROW, gold=None), 2, seed=0)
    evidence = context.questions[0].evidence_chunks
    assert {context.chunks[number].passage for number in evidence} == {0, 1}


@pytest.mark.parametrize("seed", range(4))
def test_all_of_the_evidence_is_shown_though_fewer_passages_were_asked_for(maker, seed):
    joined = replace(ROW, passages=(*ROW.passages, *OTHER.passages), gold=(0, 1))
    context = maker.make(joined, 1, seed)
    assert sorted(context.passages) == sorted(passage.content for passage in ROW.passages)
    assert context.questions[0].answer == "Ana Korvin"


def test_evidence_that_is_said_to_be_nowhere_is_looked_for_in_the_texts(maker):
    assert maker.make(replace(OTHER, gold=()), 1, seed=0).questions[0].answer == NOT_FOUND
    assert maker.make(replace(ROW, gold=()), 2, seed=0).questions[0].answer == "Ana Korvin"


def test_without_the_evidence_the_answer_says_so(maker):
    for context in (
        maker.make_answerless(ROW, OTHER, 2, seed=0),
        maker.make(replace(ROW, answerable=False, answers=()), 2, seed=0),
    ):
        [question] = context.questions
        assert question.answer == NOT_FOUND and question.evidence_chunks == []
    assert maker.make_answerless(ROW, OTHER, 2, seed=0).passages == [OTHER.passages[0].content]


def test_a_short_answer_is_not_found_inside_a_word(maker):
    context = maker.make(replace(ROW, answers=("no",), task="boolean"), 2, seed=0)
    place = context.passages.index(ROW.passages[1].content)
    assert context.questions[0].evidence_chunks == [n for n, p in enumerate(context.chunks.passages) if p == place]


def test_a_verdict_is_not_where_its_word_stands(maker):
    passage = SourcePassage("wall", "", "No wall stands there. " * 8 + "The Lurd has flooded Harrow each spring since.")
    row = replace(ROW, answers=("no",), task="boolean", passages=(passage,), gold=(0,))
    context = maker.make(row, 1, seed=0)
    assert context.questions[0].evidence_chunks == list(range(len(context.chunks)))


def test_without_named_evidence_the_answer_must_stand_in_a_passage(maker):
    missing = replace(ROW, gold=None, answers=("Viggo Upton",))
    assert maker.make(missing, 2, seed=0).questions[0].answer == NOT_FOUND
    for verdict in ("Yes", "No.", "false", "Yes, she did."):
        assert maker.make(replace(missing, answers=(verdict,)), 2, seed=0).questions[0].answer == verdict
    for name in ("No. 10 Downing Street", "True: A Novel"):
        assert maker.make(replace(missing, answers=(name,)), 2, seed=0).questions[0].answer == NOT_FOUND


@pytest.mark.parametrize(
    ("answer", "places"), [("北京", [0]), ("1998", [8]), ("CERN", [16]), ("CER", []), ("998", []), ("首都", [5])]
)
def test_answers_are_found_where_no_spaces_part_words(answer, places):
    assert [start for start, _ in find_answer("北京是中国首都，1998年他去了CERN。", answer)] == places


def test_answers_are_whole_words():
    assert not list(find_answer("रामायण", "राम"))
    assert list(find_answer("राम आया", "राम")) == [(0, 3)]
    assert list(find_answer("xa a a", "a a")) == [(3, 6)]
    assert list(find_answer("Snow, snow_drift; snowy", "SNOW")) == [(0, 4), (6, 10)]


def test_passages_that_do_not_answer_are_no_strangers_where_earlier_turns_do():
    assert is_stranger(ROW, OTHER)
    told = replace(ROW, history=(("user", "Who lived there?"), ("assistant", "Ana Korvin did.")))
    assert not is_stranger(told, OTHER)


OWN_WORDS = "A woman whose name is forgotten built it with stones that she took from the old mill."


def test_answers_in_words_of_their_own_stand_in_no_passage_and_are_learned(maker):
    """A summary of a document, however short, and a sentence about what a search has found."""
    summary = replace(ROW, gold=None, answers=("A bridge",), task="summary", keeps_order=True)
    assert maker.make(summary, 1, seed=0).questions[0].answer == "A bridge"
    sentence = replace(ROW, gold=None, answers=(OWN_WORDS,))
    assert maker.make(sentence, 2, seed=0).questions[0].answer == OWN_WORDS
    chinese = replace(ROW, gold=None, answers=("他于1998年在北京大学获得博士学位，并在那里任教直到2010年退休。",))
    assert maker.make(chinese, 2, seed=0).questions[0].answer == chinese.answers[0]
    for row in (summary, sentence):
        assert maker.make(replace(row, gold=()), 2, seed=0).questions[0].answer == NOT_FOUND
        assert maker.make(replace(row, answerable=False), 2, seed=0).questions[0].answer == NOT_FOUND


@pytest.mark.parametrize("length", [1, 100])
def test_a_conversation_is_laid_out_as_a_server_lays_it_out(maker, tiny_checkpoint, length):
    turns = (("user", "Which river?"), ("assistant", "The Lurd. " * length), ("user", "Is it?"), ("assistant", "Yes."))
    context = maker.make(replace(ROW, history=turns), 2, seed=0)
    [question] = context.questions
    request = Request(ROW.question, context.passages[:2], history=[Turn(*turn) for turn in turns])
    served = Pipeline(tiny_checkpoint).prepare(request, max_tokens=len(question.answer_ids))
    assert context.chunks.token_ids.tolist() == served.chunks.token_ids.tolist()
    assert context.chunks.passages.tolist() == served.chunks.passages.tolist()
    assert question.prompt_ids == served.question_ids
    assert question.chunks.token_ids.tolist() == served.question_chunks.token_ids.tolist()
    assert len(context.passages) == 2 + (length > 1) == context.chunks.passages.max() + 1
    read = maker.chunker.decoder_tokenizer.decode([chunk.token_ids for chunk in question.chunks])
    assert "".join(read).strip() == "Question: Is it? Answer: Yes. Who built the bridge?"


def test_the_newest_turns_stay_where_passages_fill_the_window_but_never_beyond_it(maker, tiny_checkpoint):
    turns = (("user", "Which river?"), ("assistant", "The Lurd. " * 5))
    row = replace(ROW, history=turns, passages=(replace(MILL, text=MILL.text * 40), *ROW.passages[1:]))
    kept = {}
    for window in (100, 40):
        config = replace(tiny_checkpoint.config, max_prompt_slots=window)
        narrow = RowContexts(replace(tiny_checkpoint, config=config).chunker)
        [question] = narrow.make(row, 2, seed=0).questions
        needed = narrow.chunker.num_other_slots(question.prompt_ids) + len(question.answer_ids)
        assert needed <= window
        kept[window] = "Lurd" in maker.chunker.decoder_tokenizer.decode([question.prompt_ids])[0]
    assert kept == {100: True, 40: False}


def test_a_document_stays_whole_and_in_order(maker):
    context = maker.make(replace(ROW, keeps_order=True), 1, seed=3)
    assert context.passages == [passage.content for passage in ROW.passages]


def test_a_stranger_shares_no_passage_and_holds_no_answer():
    assert is_stranger(ROW, OTHER)
    assert not is_stranger(ROW, ROW)
    assert not is_stranger(ROW, replace(OTHER, passages=(SourcePassage("odes", "", "An ode to Korvin."),)))
    assert not is_stranger(ROW, replace(OTHER, passages=()))


def test_an_answer_ends_with_the_end_of_sequence(maker):
    [question] = maker.make(ROW, 2, seed=0).questions
    tokenizer = maker.chunker.decoder_tokenizer
    assert question.answer_ids[-1] == tokenizer.eos_id
    assert tokenizer.decode([question.answer_ids[:-1]])[0].strip() == "Ana Korvin"
