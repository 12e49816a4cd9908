"""Collections: what goes in is read and checked line by line, and a request names a collection or sends passages."""

import json

import fake_triton_service as service
import pytest

from refrag_client import CollectionClient, Document, InvalidRequest
from refrag_client.cli.documents import read_document_batches


class FakeCollections:
    """Keeps documents by id, and counts as the server does."""

    def __init__(self):
        self.documents, self.calls = {}, []

    def __call__(self, operation, inputs):
        self.calls.append(operation)
        return getattr(self, operation)(inputs), {}

    def index(self, inputs):
        sent = [json.loads(each) for each in inputs["documents"]]
        changed = [each for each in sent if self.documents.get(each["id"]) != each]
        self.documents |= {each["id"]: each for each in changed}
        counts = {"num_passages": len(sent), "num_written": len(changed)}
        return {**counts, "num_chunks": len(sent), "num_tokens": 9 * len(sent), "num_encoded": len(changed)}

    def delete(self, inputs):
        return {"num_deleted": sum(self.documents.pop(each.decode(), None) is not None for each in inputs["ids"])}

    def optimize(self, inputs):
        return {}

    def list(self, inputs):
        report = {"name": "a", "num_passages": len(self.documents), "encoder": "", "num_bytes": None}
        return {"encoder": "", "collections": [report]}


@pytest.fixture(autouse=True)
def collections(fake):
    fake.store = FakeCollections()
    return fake.store


def write_lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def read(path, batch_bytes=1 << 17):
    return [each for batch in read_document_batches(path, batch_bytes) for each in batch.documents]


def test_lines_of_every_form_become_documents(tmp_path):
    corpus = write_lines(
        tmp_path / "corpus.jsonl",
        {"_id": "7", "title": "Mara", "text": "keeps a parrot", "metadata": {"year": 3, "gone": None}},
        {"id": 8, "page_content": "a harp", "meta": {"lang": "en"}},
        "no id",
        {"title": "", "text": "no id"},
        {"id": "9", "title": "A title alone", "text": ""},
    )
    first, second, third, fourth = read(corpus)
    assert first == Document("7", "keeps a parrot", "Mara", {"year": 3})
    assert second == Document("8", "a harp", "", {"lang": "en"})
    assert (third.text, third.id[:5]) == ("no id", "text-")
    assert fourth == Document("9", "", "A title alone")


def test_the_passages_of_a_folder_have_their_paths_for_ids(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.md").write_text("One.\n\n" + "Two more words. " * 60)
    (tmp_path / "b" / "c.txt").write_text("Three.")
    documents = read(tmp_path)
    assert [each.id for each in documents] == ["a.md#1", "a.md#2", "b/c.txt#1"]
    assert documents[2] == Document("b/c.txt#1", "Three.", "b/c.txt", {"source": "b/c.txt"})


def test_a_batch_of_short_lines_ends_before_the_server_finds_too_many(tmp_path):
    corpus = write_lines(tmp_path / "corpus.jsonl", *(str(number) for number in range(2500)))
    batches = list(read_document_batches(corpus, batch_bytes=1 << 17))
    assert [len(batch.documents) for batch in batches] == [1000, 1000, 500]
    assert sum(batch.num_bytes for batch in batches) == corpus.stat().st_size


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"id": "b", "text": "x\ud800"}, "line 2: the lone surrogate"),
        ({"id": "b"}, "line 2: no passage among the keys id"),
        ({"id": "b", "text": "  "}, "line 2: the text is empty"),
        ({"id": "b", "text": "", "title": " "}, "line 2: the text is empty, and there is no title"),
        ({"id": "", "text": "x"}, 'line 2: id is ""; give a string that is not empty'),
        ({"id": ["b"], "text": "x"}, "line 2: id is"),
        ({"id": "a", "text": "y"}, "line 2: the id 'a' is that of line 1 too"),
        ({"id": "b", "text": "x", "title": 3}, "line 2: title is 3"),
        ({"id": "b", "text": "x", "metadata": "y"}, "line 2: metadata is"),
        ({"id": "b", "text": "x", "metadata": {"tags": ["y"]}}, "line 2: metadata 'tags' is"),
    ],
)
def test_a_bad_document_is_told_with_file_line_and_field(line, problem, tmp_path, run, collections):
    corpus = write_lines(tmp_path / "corpus.jsonl", {"id": "a", "text": "x"}, line)
    with pytest.raises(InvalidRequest, match="line 2"):
        read(corpus)
    code, _, err = run("index", corpus, "--collection", "c", "--batch-bytes", 1)
    assert code == 2 and f"{corpus}, {problem}" in err
    # What stood before it is indexed.
    assert list(collections.documents) == ["a"]


def test_a_corpus_is_indexed_and_the_collection_optimised(tmp_path, run, collections):
    corpus = write_lines(tmp_path / "corpus.jsonl", *({"id": str(n), "text": f"passage {n}"} for n in range(50)))
    code, out, _ = run("index", corpus, "--collection", "c", "--json", "--batch-bytes", 100)
    report = json.loads(out)
    assert code == 0 and (report["num_passages"], report["num_written"], report["num_chunks"]) == (50, 50, 50)
    assert collections.calls.count("index") > 5 and collections.calls[-1] == "optimize"
    assert "50 passages, 0 of them new or changed" in run("index", corpus, "--collection", "c")[1]
    assert not list(tmp_path.glob("*.indexed"))


def test_ids_are_deleted_with_a_corpus_or_without(tmp_path, run, collections):
    corpus = write_lines(tmp_path / "corpus.jsonl", *({"id": str(n), "text": f"passage {n}"} for n in range(5)))
    assert run("index", corpus, "--collection", "c", "--delete", "1", "--json")[0] == 0
    assert run("index", "--collection", "c", "--delete", "2", "9", "--json")[1] == '{"num_deleted": 1}\n'
    assert list(collections.documents) == ["0", "3", "4"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "name a corpus to index"),
        (("--delete", "a"), "--delete needs --collection"),
        (("--collection", "c"), "there is nothing to do"),
        (("nowhere.jsonl", "--collection", "c"), "nowhere.jsonl is no file to read"),
    ],
)
def test_an_index_command_without_work_is_refused(arguments, problem, run):
    code, _, err = run("index", *arguments)
    assert code == 2 and problem in err


def test_a_corpus_without_a_name_is_not_the_working_directory(run, collections, capsys):
    with pytest.raises(SystemExit) as caught:
        run("index", "", "--collection", "c")
    assert caught.value.code == 2 and "CORPUS: it is empty; name a file" in capsys.readouterr().err


def test_the_collections_are_listed(run, collections):
    assert json.loads(run("collections", "list")[1]) == {
        "name": "a",
        "num_passages": 0,
        "encoder": "",
        "num_bytes": None,
    }


def test_a_document_that_json_cannot_hold_is_refused(url):
    with CollectionClient(url) as client, pytest.raises(InvalidRequest, match="document 'a' cannot be sent as JSON"):
        client.index("c", [Document("a", "x", metadata={"when": object()})])


def test_a_question_about_a_collection_goes_to_another_model(client, fake):
    client.generate("who?", collection="c", num_passages=3, filter={"year": 3})
    inputs = service.read_inputs(fake.requests[0])
    assert fake.requests[0].model_name == "refrag_rag"
    assert inputs["collection"].tolist() == [b"c"] and inputs["num_passages"].tolist() == [3]
    assert json.loads(inputs["filter"][0]) == {"year": 3}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"passages": ["x"], "collection": "c"}, "both passages and a collection"),
        ({"num_passages": 3}, "num_passages is given without a collection"),
        ({"filter": {}}, "filter is given without a collection"),
        ({"collection": "c", "filter": {"a": object()}}, "give a mapping such as"),
    ],
)
def test_what_makes_no_sense_together_is_refused(client, options, problem):
    with pytest.raises(InvalidRequest, match=problem):
        client.generate("who?", **options)
