"""Reads the form `beir`: a folder of corpus.jsonl, queries.jsonl and qrels/*.tsv, each as it is or with .gz.

Most sets of this form have no answers: they serve fidelity, and whether the right passages are expanded. `answers` of a
query's object or of its `metadata` are taken.
"""

from collections import defaultdict
from pathlib import Path

from refrag.data.questions.passages import Pool, read_pool
from refrag.data.questions.records import Record, add_unique, read_json_lines, read_table
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.data.questions.searched import Unsearched
from refrag.errors import InvalidRequest

COLUMNS = ("query-id", "corpus-id", "score")
CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"


def read_beir(folder: Path, split: str | None = None) -> tuple[list[Unsearched], list[SourcePassage]]:
    """Return the queries that the judgements name, and the corpus; `split` names a file of judgements, if several."""
    corpus, queries_file, judgements = beir_files(folder, split)
    pool, queries = read_pool(corpus), _read_queries(queries_file)
    relevant = _read_judgements(judgements, queries, pool)
    if not relevant:
        raise InvalidRequest(f"{judgements} judges no passage as relevant; give scores above 0")
    return [
        _as_question(query_id, queries[query_id], ids, folder.resolve().name) for query_id, ids in relevant.items()
    ], list(pool.values())


def beir_files(folder: Path, split: str | None = None) -> tuple[Path, Path, Path]:
    """Return the files of a folder that are read: passages, queries and judgements."""
    return _find(folder, CORPUS), _find(folder, QUERIES), _find_judgements(folder, split)


def _read_queries(path: Path) -> dict[str, Record]:
    queries: dict[str, Record] = {}
    for record in read_json_lines(path):
        record.text("text")
        add_unique(queries, record.id("_id", ""), record, record, "_id")
    return queries


def _read_judgements(path: Path, queries: dict[str, Record], pool: Pool) -> dict[str, tuple[str, ...]]:
    """Return the ids of the relevant passages of each query that has some."""
    relevant: defaultdict[str, list[str]] = defaultdict(list)
    for record in read_table(path, COLUMNS):
        query_id, passage_id, score = (record.text(column) for column in COLUMNS)
        if query_id not in queries:
            raise record.fault("query-id", f"the _id of a query in {QUERIES}")
        if passage_id not in pool:
            raise record.fault("corpus-id", f"the _id of a passage in {CORPUS}")
        if not score.removeprefix("-").isdecimal():
            raise record.fault("score", "a whole number")
        if int(score) > 0:
            relevant[query_id].append(passage_id)
    return {query_id: tuple(dict.fromkeys(ids)) for query_id, ids in relevant.items()}


def _as_question(query_id: str, query: Record, relevant: tuple[str, ...], source: str) -> Unsearched:
    holder = query.record("metadata") if query.has("metadata") and not query.has("answers") else query
    row = QuestionRow(
        id=query_id,
        source=source,
        question=query.text("text"),
        answers=holder.texts("answers"),
        answerable=True,
        passages=(),
        gold=tuple(range(len(relevant))),
    )
    return Unsearched(row, relevant)


def _find_judgements(folder: Path, split: str | None) -> Path:
    files = {path.name.partition(".")[0]: path for path in sorted((folder / "qrels").glob("*.tsv*"))}
    if split is None and len(files) == 1:
        return next(iter(files.values()))
    # The usual one to report.
    wanted = split or "test"
    if wanted not in files:
        raise InvalidRequest(f"{folder / 'qrels'} has no {wanted}.tsv; there are: {', '.join(files) or 'none'}")
    return files[wanted]


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InvalidRequest(f"{folder} has no {name}; a folder of the form beir has {CORPUS}, {QUERIES} and qrels/")
