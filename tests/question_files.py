"""Small question sets in every form, as writers of such files make them."""

import gzip
import json
from pathlib import Path

PASSAGES = [
    {"id": "mill", "title": "The mill", "text": "The mill of Harrow burned down in 1911."},
    {"id": "bridge", "title": "The bridge", "text": "Ana Korvin built the bridge over the Lurd."},
    {"id": "bees", "title": "", "text": "Harrow sells honey from forty hives."},
    {"id": "ferry", "title": "The ferry", "text": "Before the bridge a ferry crossed the Lurd twice a day."},
]
ROW = {
    "id": "q1",
    "question": "Who built the bridge?",
    "answers": ["Ana Korvin", "Korvin"],
    "passages": ["ferry", "bridge", "mill"],
    "gold": [1],
}


def write_lines(path: Path, values: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(value) + "\n" for value in values)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def write_rows(folder: Path, rows: list, name: str = "town.jsonl") -> Path:
    """Write a file of the form `rows` and its passages beside it."""
    write_lines(folder / "passages.jsonl.gz", PASSAGES)
    return write_lines(folder / name, rows)


def write_squad(folder: Path) -> Path:
    question = {
        "id": "s1",
        "question": "When did the mill burn down?",
        "answers": [{"text": "1911", "answer_start": 33}],
    }
    impossible = {"id": "s2", "question": "Who rebuilt the mill?", "answers": [], "is_impossible": True}
    mill, bridge = ({"context": one["text"], "qas": []} for one in PASSAGES[:2])
    mill["qas"] = [question, impossible]
    data = [{"title": "The_mill", "paragraphs": [mill]}, {"title": "The_bridge", "paragraphs": [bridge]}]
    (path := folder / "town.json").write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


def write_beir(folder: Path, judgements: str = "b1\tbridge\t1\nb1\tmill\t0\n") -> Path:
    write_lines(
        folder / "corpus.jsonl", [{"_id": one["id"], "title": one["title"], "text": one["text"]} for one in PASSAGES]
    )
    queries = [{"_id": "b1", "text": "Who built the bridge?"}, {"_id": "b2", "text": "Where is honey sold?"}]
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judgements)
    return folder


def write_open_domain(folder: Path, form: str) -> Path:
    write_lines(folder / "passages.jsonl", PASSAGES)
    if form == "nq-open":
        return write_lines(folder / "nq.jsonl", [{"question": "who built the bridge", "answer": ["Ana Korvin"]}])
    if form == "triviaqa":
        answer = {"Value": "Ana Korvin", "Aliases": ["Korvin", "Ana Korvin"]}
        values = {"Data": [{"QuestionId": "t1", "Question": "Who built the bridge?", "Answer": answer}]}
        (path := folder / "trivia.json").write_text(json.dumps(values))
        return path
    row = "7\tWho built the bridge?\t" + '"[""Ana Korvin"", ""Korvin""]"\n'
    (path := folder / "pop.tsv").write_text("id\tquestion\tpossible_answers\n" + row)
    return path
