"""`refrag_rag` retrieves and answers; what it says is what retrieving in the client and sending the passages says."""

import json
import re
import subprocess
import sys

import grpc
import pytest
from documentation import command_blocks, run_block
from google.protobuf import text_format
from raw_requests import PATIENCE_SECONDS
from repository_edits import set_parameter
from sentence_encoder import make_sentence_encoder
from store_server import MAX_TOKENS, Served
from tritonclient.grpc import model_config_pb2, service_pb2_grpc

from refrag.export.repository import RETRIEVAL_TEMPLATES, TEMPLATES, export_repository
from refrag.serving.request_parameters import RAG_INPUTS
from refrag_client import (
    CollectionClient,
    Document,
    GenerateRequest,
    InvalidRequest,
    Overloaded,
    RefragClient,
    RefragError,
)
from refrag_client.cli.main import main
from refrag_client.tensors import encode_request

pytest.importorskip("lancedb")
pytestmark = pytest.mark.server

HERE = "tests/graph/test_graph_retrieval.py"
WORLD = "checkpoints/world"


def read_config(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.fixture(scope="module")
def rag_repository(tmp_path_factory, request):
    """Return the checkpoint with a passage encoder of random weights, whose vectors differ from text to text."""
    checkpoint = request.config.rootpath / WORLD
    folder = tmp_path_factory.mktemp("rag")
    encoder = make_sentence_encoder(folder / "sentence_encoder", checkpoint / "decoder")
    export_repository(checkpoint, folder / "repository", has_retrieval=True, passage_encoder=encoder)
    return folder / "repository"


@pytest.fixture(scope="module")
def served(rag_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rag_server")
    set_parameter(rag_repository, "retriever", "collections_path", str(folder / "collections"))
    set_parameter(rag_repository, "passage_store", "collections_path", str(folder / "collections"))
    with Served(rag_repository, folder / "store") as served:
        yield served


@pytest.fixture(scope="module")
def collections(served):
    with CollectionClient(served.server.grpc_address) as client:
        yield client


@pytest.fixture(scope="module")
def passages(heldout):
    return sorted({passage for context in heldout for passage in context.passages})


@pytest.fixture(scope="module")
def filled(collections, passages):
    """Fill the collection `world` with all passages of the held-out contexts."""
    documents = [
        Document(f"w{number}", text, metadata={"number": number, "half": "odd" if number % 2 else "even"})
        for number, text in enumerate(passages)
    ]
    report = collections.index("world", documents)
    assert (report.num_passages, report.num_written) == (len(passages), len(passages))
    assert report.num_chunks >= report.num_encoded > 0
    return "world"


def test_its_models_are_those_of_refrag_behind_a_retriever():
    own, rag = read_config(TEMPLATES / "refrag"), read_config(RETRIEVAL_TEMPLATES / "refrag_rag")
    retriever, *others = rag.ensemble_scheduling.step
    assert retriever.model_name == "retriever"
    retrieved = dict(retriever.output_map)
    for expected, step in zip(own.ensemble_scheduling.step, others, strict=True):
        if step.model_name == "preprocessing":
            # The retriever notes when the request came.
            assert expected.output_map.pop("arrival_time_ns") == "arrival_time_ns"
            assert step.input_map.pop("passages") == retrieved["passages"]
            expected.input_map.pop("passages")
        if step.model_name == "decoder":
            for name in ("passage_ids", "passage_titles", "passage_scores", "passage_texts"):
                assert step.input_map.pop(name) == retrieved["passages" if name == "passage_texts" else name]
                assert step.output_map.pop(name) == name
        assert step == expected
    assert {tensor.name for tensor in rag.input} == set(RAG_INPUTS)
    assert [str(each) for each in rag.output][: len(own.output)] == [str(each) for each in own.output]


def test_its_answers_are_those_over_the_same_passages_sent_by_the_client(served, collections, filled, heldout):
    for number, context in enumerate(heldout[:12]):
        question, num_passages = context.questions[0].text, 1 + number
        options = {"max_tokens": MAX_TOKENS, "expand_fraction": (0.0, 0.3, 1.0)[number % 3]}
        found = collections.search(filled, question, num_passages)
        sent = served.client.generate(question, [hit.text for hit in found], **options)
        answer = served.client.generate(question, collection=filled, num_passages=num_passages, **options)
        assert answer.token_ids == sent.token_ids
        assert answer.statistics == sent.statistics
        assert [(hit.id, hit.text, hit.title) for hit in answer.passages] == [(h.id, h.text, h.title) for h in found]
        assert [hit.score for hit in answer.passages] == [hit.score for hit in found]


def test_what_was_indexed_is_neither_encoded_nor_tokenised_again(served, filled, heldout):
    answer = served.client.generate(heldout[0].questions[0].text, collection=filled, num_passages=20, max_tokens=2)
    assert answer.statistics.num_stored_chunks == answer.statistics.num_chunks > 0


def test_the_passages_come_with_the_first_piece_alone(served, filled, heldout):
    with served.client.stream(
        heldout[0].questions[0].text, collection=filled, num_passages=3, max_tokens=6, min_tokens=6
    ) as stream:
        counts = [len(piece.passages) for piece in stream]
    assert counts == [3, *[0] * (len(counts) - 1)]
    assert len(stream.answer.passages) == 3


def test_an_answer_in_one_response_has_them_too(served, filled):
    answer = served.client.generate("Who?", collection=filled, num_passages=2, max_tokens=3, stream=False)
    assert len(answer.passages) == 2


def test_a_filter_that_nothing_fits_leaves_the_question_alone(served, filled):
    options = {"collection": filled, "filter": {"number": {"lt": 0}}, "max_tokens": 4}
    answer = served.client.generate("Who keeps a parrot?", **options)
    assert answer.passages == () and answer.statistics.num_chunks == 0
    assert answer.token_ids == served.client.generate("Who keeps a parrot?", max_tokens=4).token_ids


def test_filters_and_modes_reach_the_search(collections, filled, passages):
    found = collections.search(filled, passages[4], 256, filter={"half": "even"}, search_mode="dense")
    assert len(found) == min(256, (len(passages) + 1) // 2)
    assert {hit.metadata["half"] for hit in found} == {"even"}
    # The nearest to a passage is the passage itself.
    assert (found[0].id, found[0].text) == ("w4", passages[4])
    assert collections.search(filled, passages[4], 1, search_mode="text")[0].id == "w4"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"collection": "moon"}, "there is no collection 'moon'; there are "),
        ({"collection": "world", "num_passages": 0}, "num_passages is 0; allowed is 1 to 256"),
        ({"collection": "world", "num_passages": 257}, "num_passages is 257; allowed is 1 to 256"),
        ({"collection": "world", "filter": {"colour": "red"}}, "the field 'colour', which no passage has"),
        ({"collection": "world", "filter": "{"}, "filter is not JSON"),
        ({"collection": "world", "search_mode": "magic"}, "search_mode is 'magic'; allowed: hybrid, text, dense"),
    ],
)
def test_what_is_asked_wrongly_is_told(served, filled, options, problem):
    with pytest.raises(InvalidRequest, match=problem):
        served.client.generate("Who?", **options)


def test_a_parameter_that_nothing_reads_is_told_with_its_inputs(served, filled):
    message = encode_request(GenerateRequest("Who?", collection=filled), "refrag_rag")
    message.parameters["num_passage"].int64_param = 3
    with grpc.insecure_channel(served.server.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        [response, *_] = stub.ModelStreamInfer(iter([message]), timeout=PATIENCE_SECONDS)
    assert "num_passage is no input; is num_passages meant?" in response.error_message


def test_what_the_passage_store_is_asked_wrongly_it_tells(collections):
    for problem, ask in {
        "allowed: index, delete, optimize, drop, list": lambda: collections._ask("forget"),
        "collection is missing": lambda: collections._ask("drop"),
        "has no text": lambda: collections.index("world", [Document("a", "")]),
        "which documents.0. has too": lambda: collections.index("world", [Document("a", "x"), Document("a", "y")]),
        "ids has 0 elements": lambda: collections.delete("world", []),
    }.items():
        with pytest.raises(InvalidRequest, match=problem):
            ask()


def run_cli(served, *arguments):
    command = [sys.executable, "-m", "refrag_client.cli.main", *map(str, arguments)]
    done = subprocess.run([*command, "--url", served.server.grpc_address], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_corpus_goes_in_once_changes_follow_and_ids_go_out(served, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    lines = [{"id": f"a{n}", "title": f"Boat {n}", "text": f"Boat number {n} is painted red."} for n in range(50)]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    index = ("index", corpus, "--collection", "boats", "--json", "--batch-bytes", "500")
    [first] = run_cli(served, *index)
    assert (first["num_passages"], first["num_written"]) == (50, 50)
    lines[7]["text"] = "Boat number 7 has sunk."
    corpus.write_text("".join(json.dumps(line) + "\n" for line in [*lines, "A line without an id."]))
    [second] = run_cli(served, *index)
    assert (second["num_passages"], second["num_written"]) == (51, 2)
    assert run_cli(served, "index", "--collection", "boats", "--delete", "a1", "a2", "a99", "--json") == [
        {"num_deleted": 2}
    ]
    [found] = run_cli(served, "collections", "search", "boats", "Which boat has sunk?", "--num-passages", "1")
    assert (found["id"], found["text"]) == ("a7", "Boat 7\nBoat number 7 has sunk.")
    listed = {each["name"]: each["num_passages"] for each in run_cli(served, "collections", "list")}
    assert listed["boats"] == 49
    [answer] = run_cli(served, "ask", "Which?", "--collection", "boats", "--num-passages", "2", "--json")
    assert len(answer["passages"]) == 2
    assert run_cli(served, "collections", "drop", "boats") == [{"dropped": "boats"}]


def test_a_folder_of_texts_goes_in_under_its_paths(served, collections, tmp_path):
    (tmp_path / "harbour").mkdir()
    (tmp_path / "harbour" / "tides.md").write_text("Two tides a day.\n\n" + "Nobody counts them. " * 120)
    run_cli(served, "index", tmp_path, "--collection", "folder", "--json")
    [hit] = collections.search("folder", "two a day", 1, search_mode="text")
    assert (hit.id, hit.title) == ("harbour/tides.md#1", "harbour/tides.md")
    assert hit.metadata == {"source": "harbour/tides.md"}
    collections.drop("folder")


def test_an_index_command_that_is_killed_goes_on(served, collections, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"k{n}", "text": f"Passage {n} of many."}) + "\n" for n in range(600)))
    arguments = ["index", str(corpus), "--collection", "killed", "--batch-bytes", "400"]
    command = [sys.executable, "-m", "refrag_client.cli.main", *arguments, "--url", served.server.grpc_address]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not any(each.name == "killed" and each.num_passages > 50 for each in collections.list()):
            assert process.poll() is None
        process.kill()
    [report] = run_cli(served, *arguments, "--json")
    assert report["num_passages"] == 600 and report["num_written"] < 600
    assert {each.name: each.num_passages for each in collections.list()}["killed"] == 600
    collections.drop("killed")


@pytest.mark.parametrize("block", command_blocks("docs/retrieval.md", HERE), ids=lambda block: block.language)
def test_the_commands_of_the_page_do_what_they_are_there_for(block, served, tmp_path):
    lines = [{"id": "a1", "text": "Mara Tolen keeps a parrot."}, {"id": "a2", "text": "Odo Marsk plays the harp."}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "pets.txt").write_text("Mara Tolen keeps a parrot.\n")
    code = block.code.replace("127.0.0.1:8001", served.server.grpc_address)
    code = re.sub(r"\b(refrag (?:ask|index|collections \w+))", rf"\1 --url {served.server.grpc_address}", code)
    assert "parrot" in run_block(block, code, tmp_path)


@pytest.mark.slow
def test_a_replica_answers_from_the_collections_of_another_and_changes_none(rag_repository, served, filled, tmp_path):
    """Both know the same folder; the other one writes."""
    question = "Who keeps a parrot?"
    expected = served.client.generate(question, collection=filled, num_passages=5, max_tokens=MAX_TOKENS)
    with Served(rag_repository, tmp_path / "store") as replica:
        answer = replica.client.generate(question, collection=filled, num_passages=5, max_tokens=MAX_TOKENS)
        assert (answer.token_ids, answer.passages) == (expected.token_ids, expected.passages)
        with (
            CollectionClient(replica.server.grpc_address) as other,
            pytest.raises(Overloaded, match="another server writes to these collections"),
        ):
            other.index(filled, [Document("new", "New here.")])


def test_a_server_without_collections_says_so(server):
    with RefragClient(server.grpc_address) as client, pytest.raises(RefragError, match="refrag_rag"):
        client.generate("Who?", collection="world")


@pytest.mark.slow
def test_words_alone_are_searched_where_there_is_no_sentence_encoder(tmp_path, request, capsys):
    repository = tmp_path / "repository"
    checkpoint = str(request.config.rootpath / WORLD)
    assert main(["export", "--checkpoint", checkpoint, "--repository", str(repository), "--retrieval"]) == 0
    assert "collections are searched by words alone" in capsys.readouterr().out
    assert not (repository / "passage_encoder").exists()
    collections_path = {"retriever": tmp_path / "collections", "passage_store": tmp_path / "collections"}
    for model, path in collections_path.items():
        set_parameter(repository, model, "collections_path", str(path))
    with Served(repository, "off") as served, CollectionClient(served.server.grpc_address) as collections:
        report = collections.index("birds", [Document("1", "Mara keeps a parrot."), Document("2", "Odo has a harp.")])
        assert (report.num_written, report.num_chunks) == (2, 0)
        assert [hit.id for hit in collections.search("birds", "Who has a parrot?", 1)] == ["1"]
        with pytest.raises(InvalidRequest, match="this server has no passage encoder"):
            collections.search("birds", "Who?", search_mode="dense")
