import gzip
import json
import re
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refrag.data.documents import MixedDocuments, open_documents, split_of
from refrag.data.sources import TextSource
from refrag.errors import TrainingError

TEXTS = [f"Document {number:02} of many." for number in range(40)]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "deeper").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / ("deeper" if number % 2 else "") / f"{number:02}.md").write_text(text)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return TextSource(kind="text", path=str(folder))


@pytest.fixture(scope="module")
def jsonl_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("jsonl") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return TextSource(kind="jsonl", path=str(path))


def read(source, split):
    return list(open_documents(source, split).read())


def write_jsonl(tmp_path, *lines):
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    return TextSource(kind="jsonl", path=str(tmp_path))


@pytest.mark.parametrize("name", ["text_folder", "jsonl_file"])
def test_the_two_splits_together_are_all_documents_and_share_none(name, request):
    source = request.getfixturevalue(name)
    train, heldout = read(source, "train"), read(source, "heldout")
    assert sorted(train + heldout) == TEXTS
    assert len(train) > len(heldout) > 0


def test_about_one_identity_in_ten_is_held_out():
    assert 900 < sum(split_of(f"name {number}") == "heldout" for number in range(10_000)) < 1100


def test_files_come_in_the_order_of_their_names_and_others_are_left_alone(text_folder):
    train = read(text_folder, "train")
    assert train == sorted(train, key=lambda text: (TEXTS.index(text) % 2, text))


@given(skip=st.integers(0, 150))
def test_a_stream_that_skips_goes_on_where_the_whole_one_is(text_folder, skip):
    documents = open_documents(text_folder, "train")
    assert list(islice(documents.stream(skip), 50)) == list(islice(documents.stream(), skip, skip + 50))


def test_behind_the_last_document_comes_the_first_again(jsonl_file):
    documents = open_documents(jsonl_file, "train")
    one_pass = list(documents.read())
    assert list(islice(documents.stream(), 2 * len(one_pass))) == one_pass * 2


@given(num_ahead=st.integers(1, 60))
def test_shuffled_documents_are_all_there_in_the_same_order_in_every_run(jsonl_file, num_ahead):
    source = jsonl_file.model_copy(update={"shuffle": num_ahead})
    in_order = read(jsonl_file, "train")
    one_pass = list(islice(open_documents(source, "train").stream(), len(in_order)))
    assert one_pass == list(islice(open_documents(source, "train").stream(), len(in_order)))
    for start in range(0, len(in_order), num_ahead):
        assert sorted(one_pass[start : start + num_ahead]) == sorted(in_order[start : start + num_ahead])
    assert (one_pass == in_order) == (num_ahead == 1)
    assert read(source, "train") == in_order


@pytest.mark.parametrize("num_ahead", [1, 7, 100])
@given(num_before=st.integers(0, 90))
def test_restored_documents_go_on_where_the_others_stopped(jsonl_file, num_ahead, num_before):
    source = jsonl_file.model_copy(update={"shuffle": num_ahead})
    documents, resumed = open_documents(source, "train"), open_documents(source, "train")
    for _ in range(num_before):
        documents.draw()
    resumed.restore(json.loads(json.dumps(documents.state())))
    assert [resumed.draw() for _ in range(5)] == [documents.draw() for _ in range(5)]


def test_a_line_is_an_object_or_a_bare_string_and_may_be_compressed(tmp_path):
    with gzip.open(tmp_path / "some.jsonl.gz", "wt") as file:
        file.write("\n\n".join(json.dumps(text if number % 2 else {"text": text}) for number, text in enumerate(TEXTS)))
    source = TextSource(kind="jsonl", path=str(tmp_path))
    assert sorted(read(source, "train") + read(source, "heldout")) == TEXTS


def test_a_document_that_comes_twice_is_in_one_split(tmp_path):
    source = write_jsonl(tmp_path, *(json.dumps(text) for text in TEXTS * 2))
    assert not set(read(source, "train")) & set(read(source, "heldout"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "cut', "some.jsonl line 2 is not JSON"),
        ('{"body": "other"}', "some.jsonl line 2 has no text under 'text', only ['body']"),
        ("7", "some.jsonl line 2 has no text under 'text', only int"),
        (r'"\ud800"', "some.jsonl line 2 has text that no tokenizer takes"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    with pytest.raises(TrainingError, match=re.escape(complaint)):
        read(write_jsonl(tmp_path, '"good"', line), "train")


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "some.jsonl.gz").write_bytes(gzip.compress(b'"good"\n' * 100)[:-12])
    with pytest.raises(TrainingError, match=r"some\.jsonl\.gz cannot be read"):
        read(TextSource(kind="jsonl", path=str(tmp_path)), "train")


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(TrainingError, match=r"latin\.txt cannot be read as UTF-8"):
        read(TextSource(kind="text", path=str(tmp_path)), "train")


@pytest.mark.parametrize("kind", ["text", "jsonl", "dataset"])
def test_a_source_of_files_needs_a_path(kind):
    with pytest.raises(TrainingError, match=f"'{kind}' needs a path"):
        open_documents(TextSource(kind=kind), "train")


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_path_must_exist_and_hold_something(tmp_path, kind):
    with pytest.raises(TrainingError, match="does not exist"):
        open_documents(TextSource(kind=kind, path=str(tmp_path / "nowhere")), "train")
    with pytest.raises(TrainingError, match=r"holds no file that ends in \."):
        read(TextSource(kind=kind, path=str(tmp_path)), "train")


def test_blank_texts_and_empty_files_are_no_documents(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "some.jsonl").write_text('" "\n{"text": ""}\n')
    for kind in ("text", "jsonl"):
        with pytest.raises(TrainingError, match="no train document and 0 of the other split"):
            read(TextSource(kind=kind, path=str(tmp_path)), "train")


def test_a_split_without_documents_says_what_the_other_has(tmp_path):
    source = write_jsonl(tmp_path, '"one"', '" "')
    empty = "heldout" if split_of("one") == "train" else "train"
    with pytest.raises(TrainingError, match=f"has no {empty} document and 1 of the other split"):
        open_documents(source, empty).draw()


def test_the_library_documents_itself_and_holds_some_of_it_out():
    source = TextSource(kind="stdlib")
    train, heldout = read(source, "train"), read(source, "heldout")
    assert len(train) > 300 and len(heldout) > 20
    assert sum(map(len, train)) > 1_000_000
    assert any(
        text.startswith("textwrap\n\nText wrapping and filling.\n\ntextwrap.TextWrapper") for text in train + heldout
    )


def test_no_held_out_paragraph_of_the_library_is_in_its_training_text():
    def paragraphs(split):
        texts = read(TextSource(kind="stdlib"), split)
        return {part for text in texts for part in text.split("\n\n") if len(part) >= 60}

    assert not paragraphs("train") & paragraphs("heldout")


def test_worlds_are_new_ones_each_and_the_same_in_every_run():
    source = TextSource(kind="world")
    worlds = list(islice(open_documents(source, "train").stream(), 20))
    assert len(set(worlds)) == 20
    assert list(islice(open_documents(source, "train").stream(5), 15)) == worlds[5:]


class FakeDatasets(SimpleNamespace):
    """Stands for the package datasets, with one set of one split."""

    def load_dataset(self, path, split, streaming):
        assert streaming
        if split != "train":
            raise ValueError(f"Bad split: {split}")
        return ({"body": text} for text in TEXTS)


def test_a_data_set_is_streamed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets())
    source = TextSource(kind="dataset", path="some/set", text_field="body")
    assert sorted(read(source, "train") + read(source, "heldout")) == TEXTS


def test_a_data_set_without_that_split_or_field_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets())
    with pytest.raises(TrainingError, match="some/set has no split 'nope' to read: Bad split"):
        read(TextSource(kind="dataset", path="some/set", split="nope"), "train")
    with pytest.raises(TrainingError, match="some/set record 0 has no text under 'text'"):
        read(TextSource(kind="dataset", path="some/set"), "train")


def test_without_the_package_datasets_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TrainingError, match="python -m pip install datasets"):
        open_documents(TextSource(kind="dataset", path="some/set"), "train")


def test_the_real_package_streams_a_local_folder(jsonl_file):
    pytest.importorskip("datasets", reason="the package datasets is not installed", exc_type=ImportError)
    source = TextSource(kind="dataset", path=str(jsonl_file.path).rpartition("/")[0])
    assert read(source, "train") == read(jsonl_file, "train")


@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=4), num_drawn=st.integers(1, 60))
def test_each_source_of_a_mix_gives_what_its_weight_says(text_folder, weights, num_drawn):
    mixed = MixedDocuments([text_folder.model_copy(update={"weight": weight}) for weight in weights], "train")
    for _ in range(num_drawn):
        mixed.draw()
    for position, weight in zip(mixed.state()["positions"], weights, strict=True):
        assert abs(position - num_drawn * weight / sum(weights)) < len(weights)


@given(num_before=st.integers(0, 60))
def test_a_restored_mix_goes_on_where_the_other_stopped(text_folder, jsonl_file, num_before):
    sources = [text_folder, jsonl_file.model_copy(update={"weight": 2.5})]
    mixed, resumed = MixedDocuments(sources, "train"), MixedDocuments(sources, "train")
    for _ in range(num_before):
        mixed.draw()
    resumed.restore(json.loads(json.dumps(mixed.state())))
    assert [resumed.draw() for _ in range(8)] == [mixed.draw() for _ in range(8)]


def test_a_mix_is_of_at_least_one_source():
    with pytest.raises(TrainingError, match="no text source"):
        MixedDocuments([], "train")


def test_a_mix_refuses_the_state_of_another_number_of_sources(text_folder):
    with pytest.raises(TrainingError, match="of 2 text sources, not of 1"):
        MixedDocuments([text_folder], "train").restore({"positions": [3, 4]})
