"""The studies over contexts of different length: the same questions over few passages and over many."""

from tqdm import tqdm

from refrag.data.contexts import NUM_ENTITIES
from refrag.data.tasks import EXTRACTIVE_TASKS, TASKS, Task
from refrag.evaluation.answers import Answers, answer_prompts, count_slots
from refrag.evaluation.cases import Asking, draw_questions
from refrag.evaluation.conditions import Condition, compressed
from refrag.evaluation.encoding import CaseSet
from refrag.evaluation.models import Models
from refrag.evaluation.options import Options
from refrag.evaluation.prompts import build_prompts
from refrag.evaluation.rows import METRICS, Table, answer_difference, answer_row
from refrag.retrieval.bm25 import Strength

STRONG_PASSAGES = (1, 2, 5, 10, 20, 40, 80)
WEAK_PASSAGES = (1, 2)
# How many times as many passages stand against the plain ones, and with which share of the fraction expanded. At k=16
# and a fraction of 10% the first two take about the slots of the plain ones, the last a little more, since the last
# chunk of each passage is short; the rows tell the slots.
WEAK_RIVALS = ((8, 0.5), (12, 0.0), (16, 0.0))
EXTRAPOLATION_FACTORS = (1, 4, 16)
# Long contexts cost more than all other studies together, so they get fewer questions.
PASSAGES_SHARE, EXTRAPOLATION_SHARE = 0.5, 0.25
# A summary's document is given, not retrieved: it has as many parts whatever is asked for.
RETRIEVAL_TASKS: tuple[Task, ...] = tuple(task for task in TASKS if task != "summary")


def tabulate_passages(models: Models, options: Options) -> Table:
    """At equal slots more passages from the weak retriever; from the strong one ever more, as far as they fit."""
    size = models.checkpoint.config.chunk_size
    learned = compressed(size, "learned", options.expand_fraction)
    study = _Study(models, options, PASSAGES_SHARE, "All tasks but the summary.")
    for count in tqdm(WEAK_PASSAGES, desc="passages, weak retriever", disable=None):
        plain = study.add(Condition("full"), count, "weak")
        for factor, share in WEAK_RIVALS:
            fraction = share * options.expand_fraction
            condition = compressed(size, "learned", fraction) if fraction else compressed(size)
            mixed = study.add(condition, factor * count, "weak")
            study.compare(mixed, plain)
            study.compare_extraction(mixed, plain)
    for count in tqdm(STRONG_PASSAGES, desc="passages, strong retriever", disable=None):
        plain, mixed = study.add(Condition("full"), count, "strong"), study.add(learned, count, "strong")
        study.compare(mixed, plain)
    return study.table


def tabulate_extrapolation(models: Models, options: Options) -> Table:
    """Contexts beyond those of training, by the factor that compression shortens them."""
    size = models.checkpoint.config.chunk_size
    about = f"All tasks but the summary; training saw up to {options.trained_passages} passages."
    study = _Study(models, options, EXTRAPOLATION_SHARE, about)
    study.num_entities = max(NUM_ENTITIES, 2 * max(EXTRAPOLATION_FACTORS) * options.trained_passages)
    conditions = (compressed(size, "learned", options.expand_fraction), compressed(size))
    first: dict[Condition, Answers | None] = {}
    for factor in tqdm(EXTRAPOLATION_FACTORS, desc="extrapolation", disable=None):
        for condition in conditions:
            answers = study.add(condition, factor * options.trained_passages, "strong")
            if answers is not first.setdefault(condition, answers):
                study.compare(answers, first[condition])
    return study.table


class _Study:
    """A table in the making; contexts that several conditions share are drawn and encoded once."""

    def __init__(self, models: Models, options: Options, share: float, about: str) -> None:
        self.models, self.options = models, options
        self.num_questions = max(1, round(share * options.num_questions))
        self.num_entities = NUM_ENTITIES
        self.table = Table(about)
        self._drawn: tuple[Asking, CaseSet] | None = None
        self._added: dict[tuple[Condition, Asking], Answers | None] = {}

    def add(self, condition: Condition, num_passages: int, strength: Strength) -> Answers | None:
        """The row's answers, or None if the decoder's window does not hold every prompt."""
        asking = Asking(RETRIEVAL_TASKS, self.num_questions, num_passages, strength, num_entities=self.num_entities)
        if (condition, asking) not in self._added:
            self._added[condition, asking] = self._add(condition, asking)
        return self._added[condition, asking]

    def compare(self, answers: Answers | None, others: Answers | None) -> None:
        if answers is not None and others is not None:
            seed = self.options.seed
            self.table.differences.extend(answer_difference(answers, others, metric, seed) for metric in METRICS)

    def compare_extraction(self, answers: Answers | None, others: Answers | None) -> None:
        """Where more passages can help: a decoder that has none of the right ones is right to say "unknown"."""
        if answers is not None and others is not None:
            row = answer_difference(answers, others, "exact_match", self.options.seed, EXTRACTIVE_TASKS)
            self.table.differences.append(row)

    def _add(self, condition: Condition, asking: Asking) -> Answers | None:
        cases = self._draw(asking)
        prompts = build_prompts(cases, condition)
        if count_slots(prompts) > self.models.window(condition.form):
            return None
        answers = answer_prompts(cases, condition, prompts)
        setting = {"num_passages": asking.num_passages, "retriever": asking.strength}
        self.table.rows.append(answer_row(answers, self.options.seed, setting))
        return answers

    def _draw(self, asking: Asking) -> CaseSet:
        if self._drawn is None or self._drawn[0] != asking:
            cases = draw_questions(self.models.checkpoint, asking, self.options.seed)
            noun = "passage" if asking.num_passages == 1 else "passages"
            label = f"{asking.num_passages} {noun}, {asking.strength} retriever"
            self._drawn = asking, CaseSet(self.models, cases, self.options.seed, label)
        return self._drawn[1]
