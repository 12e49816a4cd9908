"""Runs rows under conditions: each prompt is read once, answered greedily, and scored; many are read together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from refrag.config import LEARNED_POLICY
from refrag.data.questions.arrange import arrange
from refrag.data.questions.row import QuestionRow
from refrag.data.questions.turns import as_turns
from refrag.errors import InvalidRequest
from refrag.evaluation.batch_reader import BatchReader
from refrag.evaluation.conditions import Condition
from refrag.evaluation.models import Models
from refrag.evaluation.questions import base_encoder
from refrag.evaluation.questions.answers_file import Answer, AnswersFile
from refrag.evaluation.questions.conditions import select_by, spell
from refrag.evaluation.questions.contexts import AS_SERVED, VARIANTS, Contexts, RowPrompt
from refrag.evaluation.questions.controls import count_shared, find_control
from refrag.evaluation.questions.options import QuestionOptions
from refrag.evaluation.questions.part import Part
from refrag.evaluation.reading import batch_by_length
from refrag.evaluation.scores import contains_answer, exact_match, is_refusal, rouge_l, token_f1
from refrag.policies import POLICIES
from refrag.request import Request
from refrag.teacher_forcing.distribution import TopDistribution
from refrag.teacher_forcing.fidelity import compare_with_plain

# Selections that no server offers under this name.
OWN_SELECTIONS = (base_encoder.NAME, "oracle", *VARIANTS)


# Of one batch: slots, which the cache holds, and pairs of them, for which attention may keep a weight in every head.
MAX_SLOTS, MAX_PAIRS = 2**16, 2**28


@dataclass(frozen=True)
class AskedRow:
    """A row with its prompt under a condition."""

    row: QuestionRow
    built: RowPrompt


@dataclass(frozen=True)
class PlainAnswer:
    """The plain decoder's own answer with the token that ended it, and its distributions before each token."""

    token_ids: list[int]
    distribution: TopDistribution


class QuestionRun:
    """Answers of all rows under all conditions, in a file that holds those of an earlier start too."""

    def __init__(
        self, models: Models, rows: Sequence[QuestionRow], conditions: Sequence[Condition], options: QuestionOptions
    ) -> None:
        self.models, self.options = models, options
        self.sources = {row.id: row for row in rows}
        self.rows = [arrange_row(row, options) for row in rows]
        self.conditions = conditions
        self.plain = next(one for one in conditions if one.form == "full")
        self.contexts = Contexts(models, self._as_request, options.window, options.max_tokens, options.seed)
        _refuse_unanswerable(models, self.rows, conditions)
        self.contexts.refuse_long_questions(self.rows)
        self.controls = self._find_controls()

    def answer_all(self, file: AnswersFile, batch_rows: int = 1, part: Part | None = None) -> None:
        """Answer what the file lacks, of all rows or a part of them, so many at a time.

        Raise InvalidRequest if a GPU has too little memory for so many.
        """
        own = self.rows if part is None else self.rows[part.rows]
        with tqdm(total=len(own), desc="rows", unit="row", disable=None) as progress:
            for start in range(0, len(own), batch_rows):
                rows = own[start : start + batch_rows]
                self.contexts.keep_only(*rows, *(self.controls.get(row.id) for row in rows))
                try:
                    self._answer_rows(rows, file)
                except torch.OutOfMemoryError as error:
                    raise InvalidRequest(
                        f"the GPU has too little memory for {len(rows)} rows together ({error}); lower batch_rows: the "
                        "answers so far are kept, and the next run goes on"
                    ) from None
                progress.update(len(rows))

    def asked(self, row: QuestionRow) -> list[Condition]:
        """Return the conditions that the row can be asked under: without evidence there is none to show alone."""
        return [one for one in self.conditions if one.form != "gold" or row.gold]

    def _find_controls(self) -> dict[str, QuestionRow]:
        """Return the control of each row by its id; none if no condition needs them."""
        if not any(one.embeddings == "shuffled" for one in self.conditions):
            return {}
        return {row.id: find_control(self.rows, number) for number, row in enumerate(self.rows)}

    def _answer_rows(self, rows: Sequence[QuestionRow], file: AnswersFile) -> None:
        missing = {
            row.id: [one for one in self.asked(self.sources[row.id]) if (row.id, spell(one)) not in file]
            for row in rows
        }
        rows = [row for row in rows if missing[row.id]]
        plain: dict[str, PlainAnswer] = {}
        for batch in self._build(rows, self.plain):
            plain |= self._answer_plainly(batch, file)
        for condition in self.conditions:
            if condition != self.plain:
                for batch in self._build([row for row in rows if condition in missing[row.id]], condition):
                    self._answer_batch(batch, condition, plain, file)

    def _build(self, rows: Sequence[QuestionRow], condition: Condition) -> list[list[AskedRow]]:
        """Return the rows with their prompts, in batches of alike length."""
        asked = [
            AskedRow(row, self.contexts.build(source, self.controls.get(row.id), condition))
            for row in rows
            for source in [self.sources[row.id] if condition.form == "gold" else row]
        ]
        lengths = [len(one.built.prompt.input_ids) + self.options.max_tokens for one in asked]
        return [[asked[number] for number in numbers] for numbers in batch_by_length(lengths, MAX_SLOTS, MAX_PAIRS)]

    def _answer_batch(
        self, batch: Sequence[AskedRow], condition: Condition, plain: Mapping[str, PlainAnswer], file: AnswersFile
    ) -> None:
        reader = BatchReader(self.models.decoder(condition.form), [one.built.prompt for one in batch])
        answers = self._answer(batch, condition, reader)
        plain_logits = reader.logits([plain[one.row.id].token_ids for one in batch])
        for one, answer, logits in zip(batch, answers, plain_logits, strict=True):
            fidelity = compare_with_plain(plain[one.row.id].distribution, logits)
            answer |= {"divergence": fidelity.divergence, "agreement": fidelity.agreement}
            if condition.embeddings == "shuffled":
                answer["num_shared_passages"] = count_shared(one.row, self.controls[one.row.id])
            file.add(one.row.id, spell(condition), answer)

    def _answer_plainly(self, batch: Sequence[AskedRow], file: AnswersFile) -> dict[str, PlainAnswer]:
        """Return the plain decoder's answers by row, from the file where they are there."""
        reader = BatchReader(self.models.plain, [one.built.prompt for one in batch])
        keys = [(one.row.id, spell(self.plain)) for one in batch]
        if any(key not in file for key in keys):
            for key, answer in zip(keys, self._answer(batch, self.plain, reader), strict=True):
                if key not in file:
                    file.add(*key, answer)
        wholes = [_with_end(file[key]) for key in keys]
        return {
            row_id: PlainAnswer(whole, TopDistribution.of(logits))
            for (row_id, _), whole, logits in zip(keys, wholes, reader.logits(wholes), strict=True)
        }

    def _answer(self, batch: Sequence[AskedRow], condition: Condition, reader: BatchReader) -> list[Answer]:
        """Return the answers with what can be said of them alone."""
        gold = [self._gold_ids(one.row) for one in batch]
        read = zip(batch, reader.answer(self.options.max_tokens), reader.log_perplexities(gold), strict=True)
        return [self._score(one, condition, *answer, log_perplexity) for one, answer, log_perplexity in read]

    def _gold_ids(self, row: QuestionRow) -> list[int]:
        """Return the tokens of the answer whose likelihood is measured; none for a row without answers."""
        return self.contexts.answer_ids(row.answers[0]) if row.answerable and row.answers else []

    def _score(
        self, one: AskedRow, condition: Condition, token_ids: list[int], end_id: int | None, log_perplexity: float
    ) -> Answer:
        row, built = one.row, one.built
        tokenizer = self.models.checkpoint.decoder_tokenizer
        text = str(tokenizer.decode(token_ids, skip_special_tokens=True)).strip()
        answer = {"answer": text, "token_ids": token_ids, "end_id": end_id, **score(text, row), **_sizes(built)}
        if condition.selection != "none" and row.gold:
            answer["gold_recall"] = _recall(row.gold, built)
        if not math.isnan(log_perplexity):
            answer["log_perplexity"] = log_perplexity
        return answer

    def _as_request(self, row: QuestionRow) -> Request:
        return make_request(row, self.options)


def arrange_row(row: QuestionRow, options: QuestionOptions) -> QuestionRow:
    """Return the row with the passages that all conditions see; a document stays whole."""
    count = None if row.keeps_order else options.num_passages
    return arrange(
        row, count, options.seed, not options.source_order, keep_gold=options.keep_gold, strength=options.strength
    )


def make_request(row: QuestionRow, options: QuestionOptions) -> Request:
    """Return the request that a client would send: the question, the passages and the last turns."""
    turns, limit = as_turns(row), options.history_turns
    last = turns if limit is None else turns[max(0, len(turns) - limit) :]
    return Request(row.question, [passage.content for passage in row.passages], history=last)


def score(text: str, row: QuestionRow) -> dict[str, Any]:
    """Return the scores that apply to the row; a row without answers is judged by refusal and fidelity alone."""
    scores = {"refused": is_refusal(text, row.answers if row.answerable else ())}
    if row.answerable and row.answers:
        scores["exact_match"] = exact_match(text, row.answers)
        scores["f1"] = token_f1(text, row.answers)
        scores["contains"] = contains_answer(text, row.answers)
        scores["rouge_l"] = rouge_l(text, row.answers)
    if isinstance(true_answer := row.extra.get("true_answer"), str):
        scores["true_answer"] = contains_answer(text, [true_answer])
    return scores


def _with_end(answer: Answer) -> list[int]:
    """Return the tokens of an answer, with the one that ended it."""
    token_ids, end_id = answer["token_ids"], answer["end_id"]
    return token_ids if end_id is None else [*token_ids, end_id]


def _sizes(built: RowPrompt) -> dict[str, int]:
    return {
        "prompt_slots": len(built.prompt.input_ids),
        "context_tokens": built.context_tokens,
        "cut_tokens": built.cut_tokens,
        "expanded_chunks": len(built.expanded),
    }


def _recall(gold: Sequence[int], built: RowPrompt) -> float:
    """Return the share of the passages with evidence that have an expanded chunk."""
    expanded = {int(built.places[number]) for number in built.expanded}
    return len(expanded.intersection(gold)) / len(gold)


def _refuse_unanswerable(models: Models, rows: Sequence[QuestionRow], conditions: Sequence[Condition]) -> None:
    """Raise an error, before anything is answered, for what would fail in the middle of the run."""
    if any(select_by(conditions, name) for name in (LEARNED_POLICY, AS_SERVED)):
        models.checkpoint.require_policy()
    if select_by(conditions, base_encoder.NAME):
        base_encoder.require_base(models.checkpoint)
    for one in conditions:
        if one.selection not in OWN_SELECTIONS:
            POLICIES.check(one.selection)
    if not rows:
        raise InvalidRequest("there is no row to ask; name a file with questions")
