"""Scores of answers equal those worked out by hand."""

import pytest

from refrag.evaluation.scores import contains_answer, exact_match, is_refusal, normalise, rouge_l, token_f1


def test_normalising_drops_case_punctuation_and_articles():
    assert normalise("The  Old-Mill, an\tinn (A).") == "oldmill inn"
    assert normalise("another theory") == "another theory"


def test_exact_match_takes_any_accepted_answer():
    assert exact_match("the Denver Broncos.", ["Broncos", "Denver Broncos"]) == 1
    assert exact_match("Denver", ["Broncos", "Denver Broncos"]) == 0
    assert exact_match("Denver", []) == 0


def test_f1_is_that_of_the_best_answer():
    # 2 common words; 3 words against 4: precision 2/3, recall 2/4.
    assert token_f1("red old mill", ["old mill at Harrow"]) == pytest.approx(4 / 7)
    assert token_f1("red old mill", ["harbour", "red mill"]) == pytest.approx(4 / 5)
    assert token_f1("go go go", ["go"]) == pytest.approx(1 / 2)
    assert (token_f1("", ["mill"]), token_f1("the", ["a"]), token_f1("mill", [])) == (0, 1, 0)


def test_an_answer_is_contained_in_whole_words():
    assert contains_answer("It was built in 1911, by Ana Korvin.", ["Ana Korvin"]) == 1
    assert contains_answer("It was built in 1911.", ["191", "19"]) == 0
    assert contains_answer("anything", ["the"]) == 0


def test_rouge_l_takes_the_best_reference_or_the_mean():
    # Common subsequence "the mill burned": 3 words of 4 and of 5, F = 6/9; with "bees hum" nothing.
    text, references = "the mill burned down", ["the old mill burned quickly", "bees hum"]
    assert rouge_l(text, references) == pytest.approx(2 / 3)
    assert rouge_l(text, references, "mean") == pytest.approx(1 / 3)
    assert rouge_l(text, []) == 0


@pytest.mark.parametrize(
    "text",
    [
        "The answer is not in the passages.",
        "I don't know.",
        "Unknown",
        "The passages do not mention who built it.",
        "This cannot be answered from the text",
        "I'm sorry, I do not have that information.",
        "",
    ],
)
def test_saying_that_the_passages_do_not_tell_is_a_refusal(text):
    assert is_refusal(text) == 1


@pytest.mark.parametrize("text", ["Ana Korvin", "the unknown soldier", "There is no bridge", "in the passage of Drake"])
def test_an_answer_is_no_refusal(text):
    assert is_refusal(text) == 0


def test_an_accepted_answer_is_no_refusal_whatever_it_says():
    assert (is_refusal("None.", ["none"]), is_refusal("None.", ["nobody"]), is_refusal("", [""])) == (0, 1, 1)


def test_characters_are_words_in_scripts_without_spaces():
    assert normalise("北京，the 首都。") == "北 京 首 都"
    assert contains_answer("首都是北京。", ["北京"]) == 1
    assert contains_answer("首都是北京。", ["东京"]) == 0
    # 2 common characters; 3 against 2: precision 2/3, recall 1.
    assert token_f1("是北京", ["北京"]) == pytest.approx(4 / 5)
    assert rouge_l("是北京", ["北京"]) == pytest.approx(4 / 5)


def test_punctuation_of_any_script_is_none_of_the_text():
    assert exact_match("“北京”…", ["北京"]) == 1
    assert exact_match("アルベルト・アインシュタイン", ["アルベルトアインシュタイン"]) == 1
    assert is_refusal("I don’t know") == 1
    assert exact_match("$5", ["5"]) == 1  # as SQuAD has it


def test_marks_stay_with_their_letters():
    assert rouge_l("की", ["का"]) == 0
    assert rouge_l("हिन्दी किताब", ["हिन्दी की किताब"]) == pytest.approx(4 / 5)


def test_rouge_l_reads_letters_beyond_ascii_and_stems_the_others():
    assert rouge_l("Ein Café in Köln", ["ein café in köln"]) == 1
    assert rouge_l("Café", ["Caf"]) == 0
    assert rouge_l("Мельница сгорела", ["Мельница стоит"]) == pytest.approx(1 / 2)
    assert rouge_l("mills burning, in_1911", ["mill burned in 1911"]) == 1
