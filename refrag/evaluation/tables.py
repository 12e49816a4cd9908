"""The studies: which questions each asks, under which conditions, and which rows it compares in pairs."""

import itertools
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from refrag.data.contexts import NUM_ENTITIES
from refrag.data.tasks import EXTRACTIVE_TASKS, TASKS, Task
from refrag.data.world.world import Phrasing
from refrag.errors import InvalidRequest
from refrag.evaluation.answers import (
    METRICS,
    Answers,
    answer,
    answer_difference,
    answer_prompts,
    answer_row,
)
from refrag.evaluation.case_set import CaseSet
from refrag.evaluation.cases import Asking, draw_questions
from refrag.evaluation.conditions import (
    POLICIES,
    READS_QUESTION,
    Condition,
    answer_conditions,
    compressed,
    policy_settings,
    reference,
)
from refrag.evaluation.models import TORCH, Models
from refrag.evaluation.options import Options
from refrag.evaluation.perplexity import tabulate_prose
from refrag.evaluation.prompts import build_prompts, choose_chunks
from refrag.evaluation.report import Table
from refrag.retrieval.bm25 import Strength

NUM_PASSAGES = 10
STRONG_PASSAGES = (1, 2, 5, 10, 20, 40, 80)
WEAK_PASSAGES = (1, 2)
# (factor, share): REFRAG reads `factor` times the plain decoder's passages, and expands `share` of the fraction.
# At k=16 and a fraction of 10% the first two take about as many slots as the plain decoder, the last a few more, since
# the last chunk of each passage is short; the rows tell the slots.
WEAK_RIVALS = ((8, 0.5), (12, 0.0), (16, 0.0))
EXTRAPOLATION_FACTORS = (1, 4, 16)
# Long contexts cost more than all other studies together, so they get fewer questions.
PASSAGES_SHARE, EXTRAPOLATION_SHARE = 0.5, 0.25
# A summary's document is given, not retrieved, so its number of passages cannot be chosen.
RETRIEVAL_TASKS: tuple[Task, ...] = tuple(task for task in TASKS if task != "summary")


def tabulate_answers(models: Models, options: Options) -> Table:
    """Compare every form of compression with the plain decoder: the main table."""
    config = models.checkpoint.config
    conditions = answer_conditions(config.trained_chunk_sizes, config.chunk_size, options.expand_fraction)
    answers = _answer_all(_draw_cases(models, options), conditions, "answers", with_texts=True)
    table = _tabulate(f"{NUM_PASSAGES} passages from the strong retriever.", answers, options)
    compressed_answers = [one for one in answers if one.condition.form == "compressed"]
    task_groups: tuple[Sequence[Task] | None, ...] = (None, ["exact"])
    for one, tasks in itertools.product(compressed_answers, task_groups):
        other = answers[conditions.index(reference(one.condition))]
        table.differences.append(answer_difference(one, other, "exact_match", options.seed, tasks))
    return table


def tabulate_policies(models: Models, options: Options) -> Table:
    """Compare policies at equal budget, each with the next."""
    cases, config = _draw_cases(models, options), models.checkpoint.config
    policies = [policy for policy in POLICIES if policy not in READS_QUESTION or policy in models.policies]
    settings = policy_settings(config.trained_chunk_sizes, config.chunk_size, options.expand_fraction)
    conditions = [compressed(size, policy, fraction) for size, fraction in settings for policy in policies]
    answers = _answer_all(cases, conditions, "policies")
    table = _tabulate("As for the answers; every policy spends its whole budget.", answers, options)
    for (one, other), metric in itertools.product(itertools.pairwise(answers), METRICS):
        if _setting(one.condition) == _setting(other.condition):
            table.differences.append(answer_difference(one, other, metric, options.seed))
    return table


def tabulate_passages(models: Models, options: Options) -> Table:
    """Compare numbers of passages: from the weak retriever at equal slots, from the strong one as many as fit."""
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
    """Ask over contexts up to 16 times as long as in training, as compression at k=16 makes them 16 times shorter."""
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


def tabulate_phrasing(models: Models, options: Options) -> Table:
    """Ask with passages and questions in phrasing that was kept from training."""
    main = models.checkpoint.config.chunk_size
    conditions = [Condition("full"), compressed(main), compressed(main, "learned", options.expand_fraction)]
    answers = _answer_all(_draw_cases(models, options, Phrasing("heldout")), conditions, "phrasing", with_texts=True)
    about = f"{NUM_PASSAGES} passages from the strong retriever. "
    about += "Passages and questions, but for comparisons and summaries, in phrasing that was kept from training."
    return _tabulate(about, answers, options)


def tabulate_onnx_encoders(models: Models, options: Options) -> Table:
    """Compare ONNX encoders with torch's: all compressed, and with the learned policy, which reads vectors too."""
    size = models.checkpoint.config.chunk_size
    conditions = [compressed(size), compressed(size, "learned", options.expand_fraction)]
    by_torch = _draw_cases(models, options, label=TORCH)
    expected = _answer_all(by_torch, conditions, TORCH)
    answers, differences, about = [*expected], [], [f"{NUM_PASSAGES} passages from the strong retriever."]
    for name in models.onnx_encoders:
        by_onnx = CaseSet(models.with_onnx_encoder(name), by_torch.cases, options.seed, name)
        found = _answer_all(by_onnx, conditions, name)
        answers += found
        about.append(_tell_agreement(by_onnx, by_torch, conditions[-1]))
        differences += [
            answer_difference(*pair, metric, options.seed)
            for pair, metric in itertools.product(zip(found, expected, strict=True), METRICS)
        ]
    table = _tabulate(" ".join(about), answers, options)
    table.differences.extend(differences)
    return table


ONNX_ENCODERS = "onnx-encoders"
TABLES: dict[str, Callable[[Models, Options], Table]] = {
    "answers": tabulate_answers,
    "policies": tabulate_policies,
    "passages": tabulate_passages,
    "extrapolation": tabulate_extrapolation,
    "prose": tabulate_prose,
    "phrasing": tabulate_phrasing,
    ONNX_ENCODERS: tabulate_onnx_encoders,
}


def choose_tables(asked: Sequence[str] | None, models: Models) -> Sequence[str]:
    """Return the tables that were asked for, by default all; the ONNX encoders' table only if there are any.

    Raises InvalidRequest if ONNX encoders are given without their table, or the table is asked for without them.
    """
    if asked is None:
        return [name for name in TABLES if name != ONNX_ENCODERS or models.onnx_encoders]
    if (ONNX_ENCODERS in asked) != bool(models.onnx_encoders):
        raise InvalidRequest(
            f"the table {ONNX_ENCODERS} and the option --onnx-encoder go together; give both, or neither"
        )
    return asked


def _draw_cases(models: Models, options: Options, phrasing: Phrasing | None = None, label: str = "") -> CaseSet:
    asking = Asking(TASKS, options.num_questions, NUM_PASSAGES, phrasing=phrasing or Phrasing())
    return CaseSet(models, draw_questions(models.checkpoint, asking, options.seed), options.seed, label)


def _answer_all(cases: CaseSet, conditions: Sequence[Condition], title: str, with_texts: bool = False) -> list[Answers]:
    return [answer(cases, condition, with_texts) for condition in tqdm(conditions, desc=title, disable=None)]


def _tabulate(about: str, answers: Sequence[Answers], options: Options) -> Table:
    return Table(about, [answer_row(one, options.seed) for one in answers])


def _tell_agreement(by_onnx: CaseSet, by_torch: CaseSet, learned: Condition) -> str:
    """Return a sentence on how near the vectors are, and how many chunks the policy selects alike."""
    pairs = zip(by_onnx.encoded(learned.chunk_size), by_torch.encoded(learned.chunk_size), strict=True)
    cosines = torch.cat([torch.cosine_similarity(one.vectors, other.vectors) for one, other in pairs])
    picks = zip(choose_chunks(by_onnx, learned), choose_chunks(by_torch, learned), strict=True)
    shared = [(len(set(ours) & set(others)), len(others)) for ours, others in picks]
    num_shared, num_picks = map(sum, zip(*shared, strict=True))
    return (
        f"Vectors by {by_onnx.label}: cosine with torch's {cosines.mean():.5f} in the mean, {cosines.min():.5f} at "
        f"least; {num_shared} of {num_picks} picks of the learned policy are the same."
    )


def _setting(condition: Condition) -> tuple[int, float]:
    return condition.chunk_size, condition.expand_fraction


class _Study:
    """A table in the making; consecutive rows over the same contexts draw and encode them only once."""

    def __init__(self, models: Models, options: Options, share: float, about: str) -> None:
        self.models, self.options = models, options
        self.num_questions = max(1, round(share * options.num_questions))
        self.num_entities = NUM_ENTITIES
        self.table = Table(about)
        self._drawn: tuple[Asking, CaseSet] | None = None

    def add(self, condition: Condition, num_passages: int, strength: Strength) -> Answers | None:
        """Add a row and return its answers, or add none and return None if a prompt exceeds the decoder's window."""
        cases = self._draw(num_passages, strength)
        prompts = build_prompts(cases, condition)
        if max(prompt.num_slots for prompt in prompts) > self.models.window(condition.form):
            return None
        answers = answer_prompts(cases, condition, prompts)
        setting = {"num_passages": num_passages, "retriever": strength}
        self.table.rows.append(answer_row(answers, self.options.seed, setting))
        return answers

    def compare(self, answers: Answers | None, others: Answers | None) -> None:
        if answers is not None and others is not None:
            seed = self.options.seed
            self.table.differences.extend(answer_difference(answers, others, metric, seed) for metric in METRICS)

    def compare_extraction(self, answers: Answers | None, others: Answers | None) -> None:
        """Compare where more passages can help: without the right ones a decoder is right to say "unknown"."""
        if answers is not None and others is not None:
            row = answer_difference(answers, others, "exact_match", self.options.seed, EXTRACTIVE_TASKS)
            self.table.differences.append(row)

    def _draw(self, num_passages: int, strength: Strength) -> CaseSet:
        asking = Asking(RETRIEVAL_TASKS, self.num_questions, num_passages, strength, num_entities=self.num_entities)
        if self._drawn is None or self._drawn[0] != asking:
            cases = draw_questions(self.models.checkpoint, asking, self.options.seed)
            label = f"{num_passages} {'passage' if num_passages == 1 else 'passages'}, {strength} retriever"
            self._drawn = asking, CaseSet(self.models, cases, self.options.seed, label)
        return self._drawn[1]
