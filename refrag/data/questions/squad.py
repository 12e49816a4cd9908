"""Reads the form `squad`: JSON of articles, whose paragraphs have questions; version 2 marks some as impossible."""

from pathlib import Path

from refrag.data.questions.records import Record, add_unique, read_json
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.data.questions.searched import Unsearched


def read_squad(path: Path) -> tuple[list[Unsearched], list[SourcePassage]]:
    """Return the questions, and all paragraphs of the file as the pool to search."""
    questions: dict[str, Unsearched] = {}
    pool: list[SourcePassage] = []
    for article_number, article in enumerate(read_json(path).records("data")):
        title = article.text_or_empty("title").replace("_", " ")
        for number, paragraph in enumerate(article.records("paragraphs")):
            passage = SourcePassage(f"{article_number}-{number}", title, paragraph.text("context"))
            pool.append(passage)
            for record in paragraph.records("qas"):
                question = _as_question(record, passage, path.name.partition(".")[0])
                add_unique(questions, question.row.id, question, record, "id")
    return list(questions.values()), pool


def _as_question(record: Record, passage: SourcePassage, source: str) -> Unsearched:
    answerable = not record.flag("is_impossible", False)
    answers = [answer.text("text") for answer in record.records("answers")] if answerable else []
    if answerable and not answers:
        raise record.fault("answers", "at least one answer, or is_impossible")
    row = QuestionRow(
        id=record.id("id", ""),
        source=source,
        question=record.text("question"),
        answers=tuple(dict.fromkeys(answers)),
        answerable=answerable,
        passages=(),
        # Positions in `needed` until the pool is searched.
        gold=(0,) if answerable else (),
        task="extractive" if answerable else "rejection",
    )
    return Unsearched(row, (passage.id,))
