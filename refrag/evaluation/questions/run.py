"""Runs rows under conditions: each prompt is read once, answered greedily, and scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from refrag.data.questions.arrange import arrange
from refrag.data.questions.row import QuestionRow, SourcePassage
from refrag.data.questions.turns import with_last_turns
from refrag.errors import InvalidRequest
from refrag.evaluation.conditions import Condition
from refrag.evaluation.models import Models
from refrag.evaluation.questions import base_encoder
from refrag.evaluation.questions.answers_file import Answer, AnswersFile
from refrag.evaluation.questions.conditions import select_by, spell
from refrag.evaluation.questions.contexts import Contexts, RowPrompt
from refrag.evaluation.questions.options import QuestionOptions
from refrag.evaluation.scores import contains_answer, exact_match, is_refusal, rouge_l, token_f1
from refrag.policies import POLICIES
from refrag.request import Request
from refrag.teacher_forcing.distribution import TopDistribution
from refrag.teacher_forcing.fidelity import compare_with_plain
from refrag.teacher_forcing.prompt_reader import PromptReader

# Selections that no server offers under this name.
OWN_SELECTIONS = (base_encoder.NAME, "oracle", "learned as served")


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
        self.controls = self._find_controls()

    def answer_all(self, file: AnswersFile) -> None:
        """Answer what the file lacks, row by row."""
        for row in tqdm(self.rows, desc="rows", unit="row", disable=None):
            control = self.controls.get(row.id)
            self.contexts.keep_only(row, control)
            self._answer_row(row, control, file)

    def asked(self, row: QuestionRow) -> list[Condition]:
        """Return the conditions that the row can be asked under: without evidence there is none to show alone."""
        return [one for one in self.conditions if one.form != "gold" or row.gold]

    def _find_controls(self) -> dict[str, QuestionRow]:
        """Return the control of each row by its id; none if no condition needs them."""
        if not any(one.embeddings == "shuffled" for one in self.conditions):
            return {}
        return {row.id: find_control(self.rows, number) for number, row in enumerate(self.rows)}

    def _answer_row(self, row: QuestionRow, control: QuestionRow | None, file: AnswersFile) -> None:
        missing = [one for one in self.asked(self.sources[row.id]) if (row.id, spell(one)) not in file]
        if not missing:
            return
        plain = self._answer_plainly(row, file)
        for condition in missing:
            if condition != self.plain:
                source = self.sources[row.id] if condition.form == "gold" else row
                built = self.contexts.build(source, control, condition)
                reader = PromptReader(self.models.decoder(condition.form), built.prompt)
                answer = self._score(row, condition, built, reader, *reader.answer(self.options.max_tokens))
                fidelity = compare_with_plain(plain.distribution, reader.logits(plain.token_ids))
                answer |= {"divergence": fidelity.divergence, "agreement": fidelity.agreement}
                if control is not None and condition.embeddings == "shuffled":
                    answer["num_shared_passages"] = count_shared(row, control)
                file.add(row.id, spell(condition), answer)

    def _answer_plainly(self, row: QuestionRow, file: AnswersFile) -> PlainAnswer:
        """Return the plain decoder's answer, from the file if it is there."""
        built = self.contexts.build(row, None, self.plain)
        reader, key = PromptReader(self.models.plain, built.prompt), (row.id, spell(self.plain))
        if key in file:
            token_ids, end_id = file[key]["token_ids"], file[key]["end_id"]
        else:
            token_ids, end_id = reader.answer(self.options.max_tokens)
            file.add(*key, self._score(row, self.plain, built, reader, token_ids, end_id))
        whole = token_ids if end_id is None else [*token_ids, end_id]
        return PlainAnswer(whole, TopDistribution.of(reader.logits(whole)))

    def _score(
        self,
        row: QuestionRow,
        condition: Condition,
        built: RowPrompt,
        reader: PromptReader,
        token_ids: list[int],
        end_id: int | None,
    ) -> Answer:
        tokenizer = self.models.checkpoint.decoder_tokenizer
        text = str(tokenizer.decode(token_ids, skip_special_tokens=True)).strip()
        answer = {"answer": text, "token_ids": token_ids, "end_id": end_id, **score(text, row), **_sizes(built)}
        if condition.selection != "none" and row.gold:
            answer["gold_recall"] = _recall(row.gold, built)
        if row.answerable and row.answers:
            answer["log_perplexity"] = reader.log_perplexity(self.contexts.answer_ids(row.answers[0]))
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
    """Return the request that a client would send: the last turns before the question, and the passages."""
    split = max(0, len(row.history) - options.question_turns)
    turns = [SourcePassage("", "", f"{role}: {text}") for role, text in row.history[:split]]
    question = with_last_turns(row, options.question_turns)
    passages = [*(turns if options.earlier_turns == "passages" else []), *row.passages]
    return Request(question, [passage.content for passage in passages])


def score(text: str, row: QuestionRow) -> dict[str, Any]:
    """Return the scores that apply to the row; a row without answers is judged by refusal and fidelity alone."""
    scores = {"refused": is_refusal(text)}
    if row.answerable and row.answers:
        scores["exact_match"] = exact_match(text, row.answers)
        scores["f1"] = token_f1(text, row.answers)
        scores["contains"] = contains_answer(text, row.answers)
        scores["rouge_l"] = rouge_l(text, row.answers)
    if isinstance(true_answer := row.extra.get("true_answer"), str):
        scores["true_answer"] = contains_answer(text, [true_answer])
    return scores


def find_control(rows: Sequence[QuestionRow], number: int) -> QuestionRow:
    """Return the nearest row that shares no passage with this one, whose vectors then tell nothing about it.

    Rows before it come first, so that adding rows leaves controls as they are. Where all rows share passages with it,
    the one that shares the fewest is returned. Raises InvalidRequest if no other row has passages.
    """
    row = rows[number]
    others = [one for one in (*reversed(rows[:number]), *rows[number + 1 :]) if one.passages]
    if not others:
        raise InvalidRequest(
            f"row {row.id!r}: the control `shuffled` takes vectors of another row's passages, and no other row has "
            "any; ask two or more rows with passages"
        )
    strangers = (other for other in others if not count_shared(row, other))
    return next(strangers, None) or min(others, key=lambda other: count_shared(row, other))


def count_shared(row: QuestionRow, other: QuestionRow) -> int:
    """Return how many passages both rows have."""
    return len({passage.id for passage in row.passages} & {passage.id for passage in other.passages})


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
    if any(select_by(conditions, name) for name in ("learned", "learned as served")):
        models.checkpoint.require_policy()
    if select_by(conditions, base_encoder.NAME):
        base_encoder.require_base(models.checkpoint)
    for one in conditions:
        if one.selection not in OWN_SELECTIONS:
            POLICIES.check(one.selection)
    if not rows:
        raise InvalidRequest("there is no row to ask; name a file with questions")
