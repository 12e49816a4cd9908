"""Question sets of every form become the same rows, and a fault anywhere in a file names its place."""

import json

import pytest
from question_files import ROW, write_beir, write_lines, write_open_domain, write_rows, write_squad

from refrag.data.questions.arrange import arrange, only_gold
from refrag.data.questions.passages import read_pool
from refrag.data.questions.read import detect_form, draw_rows, read_questions
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.errors import InvalidRequest


def make_row(num_passages=60, gold=(0, 55), **values) -> QuestionRow:
    passages = tuple(SourcePassage(str(number), "", f"text {number}") for number in range(num_passages))
    return QuestionRow("r", "made", "What?", ("a",), True, passages, gold, **values)


def numbers(row):
    return [int(passage.id) for passage in row.passages]


def test_a_listed_row_has_the_passages_it_names_in_their_order(tmp_path):
    turns = [{"role": "user", "text": "And the mill?"}, {"role": "assistant", "text": "It burned."}]
    row = {**ROW, "history": turns, "true_answer": "Odo", "source": "town"}
    [read] = read_questions(write_rows(tmp_path, [row]))
    assert [passage.id for passage in read.passages] == ["ferry", "bridge", "mill"]
    assert (read.gold, read.answers, read.answerable) == ((1,), ("Ana Korvin", "Korvin"), True)
    assert (read.history, dict(read.extra)) == (
        (("user", "And the mill?"), ("assistant", "It burned.")),
        {"true_answer": "Odo"},
    )
    assert read.passages[1].content == "The bridge\nAna Korvin built the bridge over the Lurd."


def test_a_passage_without_a_title_is_its_text(tmp_path):
    [read] = read_questions(write_rows(tmp_path, [{**ROW, "passages": ["bees"], "gold": None}]))
    assert read.passages[0].content == "Harrow sells honey from forty hives." and read.gold is None


def test_of_a_passage_with_a_title_the_text_may_be_empty(tmp_path):
    """Published sets of the form BEIR have such passages."""
    lines = [{"_id": "a", "title": "Bees", "text": ""}, {"_id": "b", "title": "", "text": " "}]
    assert read_pool(write_lines(tmp_path / "corpus.jsonl", lines[:1]))["a"].content == "Bees"
    with pytest.raises(InvalidRequest, match=r"corpus\.jsonl, line 2, field text: is ' '; give a text"):
        read_pool(write_lines(tmp_path / "corpus.jsonl", lines))


def test_no_answers_mean_unanswerable_only_if_the_list_is_there(tmp_path):
    unknown = {key: value for key, value in ROW.items() if key != "answers"}
    rows = read_questions(write_rows(tmp_path, [{**ROW, "answers": []}, {**unknown, "id": "q2"}]))
    assert [row.answerable for row in rows] == [False, True]


def test_a_compressed_question_file_reads_as_the_plain_one(tmp_path):
    plain = read_questions(write_rows(tmp_path, [ROW]))
    assert read_questions(write_rows(tmp_path, [ROW], "town.jsonl.gz")) == plain


def test_squad_questions_find_their_paragraph_and_impossible_ones_have_no_evidence(tmp_path):
    first, second = read_questions(write_squad(tmp_path))
    assert first.passages[first.gold[0]].content == "The mill\nThe mill of Harrow burned down in 1911."
    assert (first.answers, len(first.passages)) == (("1911",), 2)
    assert (second.answerable, second.answers, second.gold) == (False, (), ())


def test_the_asked_paragraph_is_added_where_the_search_does_not_reach_it(tmp_path):
    content = json.loads(write_squad(tmp_path).read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["question"] = "Ana Korvin bridge Lurd?"
    (tmp_path / "town.json").write_text(json.dumps(content))
    row = read_questions(tmp_path / "town.json", depth=1)[0]
    assert [passage.title for passage in row.passages] == ["The bridge", "The mill"] and row.gold == (1,)


def test_beir_takes_the_judged_queries_and_their_relevant_passages(tmp_path):
    [row] = read_questions(write_beir(tmp_path))
    assert (row.id, row.answers, row.answerable) == ("b1", (), True)
    assert [row.passages[one].id for one in row.gold] == ["bridge"]


def test_beir_asks_which_judgements_if_there_are_several_and_none_is_test(tmp_path):
    folder = write_beir(tmp_path)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nb2\tbees\t1\n")
    with pytest.raises(InvalidRequest, match=r"no test\.tsv; there are: dev, train"):
        read_questions(folder)
    assert [row.id for row in read_questions(folder, split="train")] == ["b2"]


@pytest.mark.parametrize("form", ["nq-open", "triviaqa", "popqa"])
def test_open_domain_questions_search_the_passages_beside_them(tmp_path, form):
    path = write_open_domain(tmp_path, form)
    [row] = read_questions(path, depth=2)
    assert detect_form(path) == form
    assert row.answers[0] == "Ana Korvin" and row.gold is None
    assert row.passages[0].id == "bridge" and len(row.passages) == 2


def test_passages_may_be_named_and_tab_separated(tmp_path):
    path = write_open_domain(tmp_path, "nq-open")
    table = tmp_path / "wiki.tsv"
    table.write_text("id\ttext\ttitle\n1\tAna Korvin built the bridge.\tBridges\n2\tBees hum.\tBees\n")
    [row] = read_questions(path, passages=table)
    assert row.passages[0].content == "Bridges\nAna Korvin built the bridge."


def test_what_a_form_would_not_read_is_refused(tmp_path):
    passages = write_lines(tmp_path / "wiki.jsonl", [{"id": "1", "text": "Bees hum."}])
    with pytest.raises(InvalidRequest, match=r"passages is .*wiki\.jsonl, but a set of the form 'squad' has its own"):
        read_questions(write_squad(tmp_path), passages=passages)
    with pytest.raises(InvalidRequest, match="split is 'dev', but a set of the form 'rows' has no splits"):
        read_questions(write_rows(tmp_path, [ROW]), split="dev")


TABLE_FAULTS = {
    "no second mark": ('2\tBees\t"Bees hum\n3\tMill\tIt burned"\n', "not tab-separated values"),
    "a text in marks and more": ('2\tBees\t"Hum" is what bees do.\n', "not tab-separated values"),
    "two lines": ('2\tBees\t"Bees\nhum"\n', "not tab-separated values .*keep it on one line"),
    "a tab": ("2\tBees\tBees\thum\n", "has 4 columns, the first line names 3; take tabs out"),
}


@pytest.mark.parametrize("name", TABLE_FAULTS)
def test_a_table_whose_texts_would_be_cut_or_joined_is_refused_with_the_line(tmp_path, name):
    rows, message = TABLE_FAULTS[name]
    (table := tmp_path / "wiki.tsv").write_text("id\ttitle\ttext\n1\tBridges\tKorvin built it.\n" + rows)
    with pytest.raises(InvalidRequest, match=rf"wiki\.tsv, line 3: {message}"):
        read_pool(table)


def test_quotation_marks_in_a_table_are_those_of_the_text(tmp_path):
    rows = '1\tSaid\t"""Hum"" is what bees do."\n2\tPipe\ta 5" pipe, "so called"\n'
    (table := tmp_path / "wiki.tsv").write_text("id\ttitle\ttext\n" + rows)
    assert [passage.text for passage in read_pool(table).values()] == [
        '"Hum" is what bees do.',
        'a 5" pipe, "so called"',
    ]


FAULTS = {
    "no question": ([ROW, {**ROW, "id": "q2", "question": " "}], "line 2, field question: is ' '; give a text"),
    "missing question": ([{"id": "q", "passages": []}], "line 1, field question: is missing"),
    "unknown passage": ([{**ROW, "passages": ["bees", "cows"]}], "line 1, field passages: 'cows' is no passage"),
    "no list": ([{**ROW, "passages": "bees"}], "line 1, field passages: is 'bees'; give a list of ids"),
    "gold beyond": ([{**ROW, "gold": [3]}], "line 1, field gold: is .*positions in `passages`, from 0 to 2"),
    "gold twice": ([{**ROW, "gold": [0, 0]}], r"line 1, field gold: is \[0, 0\]; give positions .* each once"),
    "passage twice": ([{**ROW, "passages": ["bees", "bees"]}], "line 1, field passages: is .*give each passage once"),
    "answers": ([{**ROW, "answers": "Korvin"}], "line 1, field answers: is 'Korvin'; give a list of texts"),
    "flag": ([{**ROW, "answerable": "no"}], "line 1, field answerable: is 'no'; give true or false"),
    "turns of one alone": ([{**ROW, "history": [{"role": "user", "text": "Who?"}]}], "field history: .* give turns of"),
    "turns": ([{**ROW, "history": [{"role": "user"}]}], r"field history\[0\], field text: is missing"),
    "twice": ([ROW, ROW], "line 2, field id: 'q1' is there twice"),
    "no object": ([ROW, ["q2"]], "line 2: holds .*give an object"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_row_names_file_line_and_field(tmp_path, name):
    rows, message = FAULTS[name]
    path = write_rows(tmp_path, rows)
    with pytest.raises(InvalidRequest, match=rf"town\.jsonl, .*{message}"):
        read_questions(path, form="rows")


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = write_rows(tmp_path, [ROW])
    path.write_text(path.read_text() + "\n{half")
    with pytest.raises(InvalidRequest, match=r"town\.jsonl, line 3: not JSON"):
        read_questions(path)


def test_faults_in_the_other_forms_name_their_place(tmp_path):
    content = json.loads(write_squad(tmp_path).read_text())
    content["data"][0]["paragraphs"][0]["qas"][1]["is_impossible"] = False
    (tmp_path / "town.json").write_text(json.dumps(content))
    with pytest.raises(InvalidRequest, match=r"field data\[0\], field paragraphs\[0\], field qas\[1\], field answers"):
        read_questions(tmp_path / "town.json")
    with pytest.raises(InvalidRequest, match=r"test\.tsv, line 2, field corpus-id: is 'cows'"):
        read_questions(write_beir(tmp_path / "beir", "b1\tcows\t1\n"))
    with pytest.raises(InvalidRequest, match=r"test\.tsv, line 2, field query-id: is 'b9'"):
        read_questions(write_beir(tmp_path / "beir", "b9\tbees\t1\n"))


def test_a_file_of_another_form_is_refused(tmp_path):
    path = write_lines(tmp_path / "other.jsonl", [{"prompt": "Hello"}])
    with pytest.raises(InvalidRequest, match=r"other\.jsonl has none of the forms rows, squad"):
        read_questions(path)
    with pytest.raises(InvalidRequest, match="field data: is missing"):
        read_questions(write_lines(tmp_path / "one.json", [{"prompt": "Hello"}]), form="squad")


def test_a_broken_archive_and_a_missing_file_are_refused(tmp_path):
    path = write_rows(tmp_path, [ROW], "town.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InvalidRequest, match=r"town\.jsonl\.gz cannot be read"):
        read_questions(path)
    with pytest.raises(InvalidRequest, match=r"nowhere\.jsonl cannot be read"):
        read_questions(tmp_path / "nowhere.jsonl")
    for name in ("latin.tsv", "plain.tsv.gz"):
        (tmp_path / name).write_bytes("id\tquestion\tcaf\xe9\n".encode("latin-1"))
        with pytest.raises(InvalidRequest, match=f"{name} cannot be read"):
            read_questions(tmp_path / name)
    (tmp_path / "passages.jsonl.gz").unlink()
    with pytest.raises(InvalidRequest, match="has no passages beside it"):
        read_questions(write_lines(tmp_path / "town.jsonl", [ROW]))


def test_a_larger_sub_sample_begins_with_the_smaller_one():
    rows = list(range(100))
    few, many = draw_rows(rows, 5, seed=3), draw_rows(rows, 20, seed=3)
    assert many[:5] == few and few != rows[:5] and draw_rows(rows, 5, seed=4) != few
    assert draw_rows(rows, None, seed=3) == rows and sorted(draw_rows(rows, 500, seed=3)) == rows


def test_arranging_takes_the_first_passages_in_an_order_that_the_seed_and_the_id_draw():
    row = make_row()
    arranged = arrange(row, 10, seed=1)
    assert sorted(numbers(arranged)) == list(range(10)) != numbers(arranged)
    assert arrange(row, 10, seed=1) == arranged != arrange(row, 10, seed=2)
    assert numbers(arrange(row, 10, shuffle=False)) == list(range(10))
    assert [arranged.passages[one].id for one in arranged.gold] == ["0"]


def test_evidence_that_was_not_retrieved_takes_the_last_places_when_kept():
    arranged = arrange(make_row(), 10, shuffle=False, keep_gold=True)
    assert numbers(arranged) == [*range(9), 55] and arranged.gold == (0, 9)
    assert set(numbers(arrange(make_row(gold=(50, 51)), 1, keep_gold=True))) <= {50, 51}


def test_a_weak_retriever_draws_among_the_first_fifty():
    weak = numbers(arrange(make_row(), 10, strength="weak"))
    assert len(set(weak)) == 10 and max(weak) < 50 and weak != numbers(arrange(make_row(), 10))


def test_evidence_that_was_not_found_is_in_the_context_only_if_it_is_to_be_kept():
    row = make_row(gold=(55,), num_found=55)
    assert numbers(arrange(row, 100, shuffle=False)) == numbers(arrange(row, shuffle=False)) == list(range(55))
    assert 55 in numbers(arrange(row, 10, keep_gold=True))
    few = make_row(gold=(12,), num_found=12)
    assert all(12 not in numbers(arrange(few, 10, seed, strength="weak")) for seed in range(50))


def test_parts_of_a_document_stay_in_its_order():
    row = make_row(gold=None, keeps_order=True)
    assert numbers(arrange(row, seed=1, strength="weak")) == list(range(60))
    kept = arrange(make_row(gold=(55,), keeps_order=True), 3, keep_gold=True)
    assert numbers(kept) == [0, 1, 55]


def test_only_the_evidence_is_left_where_nothing_else_is_wanted():
    row = only_gold(make_row())
    assert numbers(row) == [0, 55] and row.gold == (0, 1)
    assert numbers(only_gold(make_row(gold=None))) == []


def test_a_number_of_passages_below_one_is_refused():
    with pytest.raises(InvalidRequest, match="num_passages is 0"):
        arrange(make_row(), 0)
